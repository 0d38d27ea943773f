//! Reading what `torch.save` writes, without Python and without running anything.
//!
//! A `.pth` file is a zip archive ([`zip`]) that holds one pickle ([`pickle`]) and one member per tensor storage ([`tensors`]).
//! candle has a reader of its own; it is not used, because on a hostile file it panics (short argument tuples), allocates what the
//! file claims (4 GiB for a string) and copies memoised values (exponential growth).

mod allowed;
#[cfg(test)]
pub(crate) mod fixture;
mod pickle;
mod tensors;
mod zip;

pub(crate) use pickle::{Pickle, Value};
pub(crate) use tensors::File;
