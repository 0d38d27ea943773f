//! What can be said of the GPU engine without a GPU: the scheme of devices and batches on devices that are made up, and the arithmetic on
//! candle's CPU device.

mod arithmetic;
mod kernels;
mod scheme;
