//! A `.pth` file: its pickle, and the tensors that the pickle refers to.

use std::path::Path;
use std::sync::Arc;

use microtome_io::bytes::ByteSource;

use super::pickle::{Id, Pickle, Value};
use super::zip::Archive;
use crate::stored::{Kind, Stored};
use crate::{Error, Result};

/// Names, plans and logs of the largest real checkpoints take a few MiB.
const MAX_PICKLE: u64 = 32 << 20;
/// Bytes of a storage's name, which is its number.
const MAX_KEY: usize = 64;
/// A tensor in a parameter in a subclass.
const MAX_WRAPPERS: usize = 4;

/// An open checkpoint. Tensors are read one by one, so that what is not asked for (half of the file is the optimizer's) costs nothing.
#[derive(Debug)]
pub(crate) struct File {
    archive: Archive,
    /// The archive's one top folder, named after the file at the time of writing.
    root: String,
    pickle: Pickle,
}

impl File {
    /// Reads the archive's directory and its pickle.
    ///
    /// # Errors
    /// If the archive is none of `torch.save`, is damaged, or holds more than data.
    pub(crate) fn open(source: Arc<dyn ByteSource>) -> Result<Self> {
        let archive = Archive::open(source)?;
        let path = archive.path();
        if let Some(message) = another_format(&archive) {
            return Err(Error::unsupported(path, message));
        }
        let pickles = archive.names().filter_map(|n| n.strip_suffix("/data.pkl").filter(|r| !r.contains('/')));
        let [root] = pickles.collect::<Vec<_>>()[..] else {
            return Err(Error::format(path, "not a PyTorch checkpoint (the zip archive holds no single data.pkl)"));
        };
        let root = root.to_owned();
        let member = format!("{root}/data.pkl");
        let size = archive.size(&member).unwrap_or_default();
        if size > MAX_PICKLE {
            return Err(Error::limits(path, format!("a pickle of {size} bytes; up to {MAX_PICKLE} are read")));
        }
        let order = format!("{root}/byteorder");
        if let Some(0..=16) = archive.size(&order)
            && *archive.read(&order)? != *b"little"
        {
            return Err(Error::unsupported(path, "written on a big-endian machine"));
        }
        let bytes = archive.read(&member)?;
        let pickle = Pickle::parse(&bytes).map_err(|m| Error::format(path, format!("{member} cannot be read: {m}")))?;
        drop(bytes);
        archive.source().still_whole()?;
        Ok(Self { archive, root, pickle })
    }

    pub(crate) fn path(&self) -> &Path {
        self.archive.path()
    }

    pub(crate) fn root(&self) -> Id {
        self.pickle.root()
    }

    pub(crate) fn value(&self, id: Id) -> &Value {
        self.pickle.value(id)
    }

    pub(crate) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        self.pickle.entry(dict, key)
    }

    pub(crate) fn text(&self, id: Id) -> Option<&str> {
        match self.value(id) {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    fn int(&self, id: Id) -> Option<usize> {
        match self.value(id) {
            Value::Int(value) => usize::try_from(*value).ok(),
            _ => None,
        }
    }

    fn extents(&self, id: Id) -> Option<Vec<usize>> {
        let items = match self.value(id) {
            Value::Sequence(items) => items,
            // `torch.Size` of a tuple.
            Value::Call(..) => match self.pickle.call(id)? {
                ("torch", "Size", [items]) => match self.value(*items) {
                    Value::Sequence(items) => items,
                    _ => return None,
                },
                _ => return None,
            },
            _ => return None,
        };
        // `torch.Tensor` itself stops at 64 dimensions.
        (items.len() <= 64).then(|| items.iter().map(|i| self.int(*i)).collect()).flatten()
    }

    /// The tensor that a value stands for; a clause if it holds no numbers that can be read, and `None` if it is no tensor at all.
    pub(crate) fn tensor(&self, id: Id) -> Option<Result<Stored, String>> {
        let (module, name, arguments) = self.pickle.call(id)?;
        self.rebuilt(module, name, arguments, MAX_WRAPPERS)
    }

    /// What a function of PyTorch would make of these arguments.
    fn rebuilt(&self, module: &str, name: &str, arguments: &[Id], wrappers: usize) -> Option<Result<Stored, String>> {
        let unreadable = || Some(Err(format!("is made by {name} from what does not describe a tensor")));
        match (module, name) {
            (_, "_reconstruct" | "_frombuffer") if module.starts_with("numpy") => {
                Some(Err("is a NumPy array; tensors of PyTorch are read".into()))
            }
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2" | "_rebuild_tensor_v3") => {
                self.plain(name, arguments).or_else(unreadable)
            }
            _ if wrappers == 0 => unreadable(),
            // The parameter's tensor; it is no parameter itself.
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => {
                let inner = arguments.first().and_then(|inner| self.pickle.call(*inner));
                inner.and_then(|(m, n, a)| self.rebuilt(m, n, a, wrappers - 1)).or_else(unreadable)
            }
            // A subclass such as MONAI's `MetaTensor`: a function, the class, the function's arguments, attributes.
            ("torch._tensor", "_rebuild_from_type_v2" | "_rebuild_from_type") => {
                let inner = if let [function, _, inner, ..] = arguments
                    && let (Value::Global(function), Value::Sequence(inner)) =
                        (self.value(*function), self.value(*inner))
                {
                    self.rebuilt(&function.module, &function.name, inner, wrappers - 1)
                } else {
                    None
                };
                inner.or_else(unreadable)
            }
            ("torch._utils" | "torch._tensor", other) => {
                Some(Err(format!("is made by {other}, which is not supported")))
            }
            _ => None,
        }
    }

    /// A tensor that is a part of a storage: `storage, offset, shape, strides, requires_grad, hooks`, in version 3 also the type, and
    /// last what is left to be done to the values.
    fn plain(&self, function: &str, arguments: &[Id]) -> Option<Result<Stored, String>> {
        let [storage, offset, shape, strides, rest @ ..] = arguments else { return None };
        let Value::Persistent(storage) = self.value(*storage) else { return None };
        let Value::Sequence(storage) = self.value(*storage) else { return None };
        let [_, class, key, _, length, ..] = storage.as_slice() else { return None };
        let Value::Global(class) = self.value(*class) else { return None };
        let (class, rest) = match (function, rest) {
            ("_rebuild_tensor_v3", [_, _, class, rest @ ..]) => match self.value(*class) {
                Value::Global(class) => (class.name.as_str(), rest),
                _ => return None,
            },
            ("_rebuild_tensor_v3", _) => return None,
            (_, rest) => (class.name.as_str(), rest.get(2..).unwrap_or_default()),
        };
        let kind = match class {
            "FloatStorage" | "float32" => Kind::F32,
            "DoubleStorage" | "float64" => Kind::F64,
            "HalfStorage" | "float16" => Kind::F16,
            "BFloat16Storage" | "bfloat16" => Kind::Bf16,
            other => return Some(Err(format!("is stored as {other}; half, bfloat16, float and double are read"))),
        };
        // Such as a conjugate or a sign that has not been applied yet.
        if rest.first().is_some_and(|m| !matches!(self.value(*m), Value::None | Value::Dict(_))) {
            return None;
        }
        if let Some(Value::Dict(entries)) = rest.first().map(|m| self.value(*m))
            && entries.iter().any(|(_, value)| *self.value(*value) != Value::Bool(false))
        {
            return Some(Err("has a conjugate or a sign that is not applied yet".into()));
        }
        let (offset, length, key) = (self.int(*offset)?, self.int(*length)?, self.text(*key)?);
        let (shape, strides) = (self.extents(*shape)?, self.extents(*strides)?);
        if key.len() > MAX_KEY {
            return Some(Err("has a storage with a name that is no number".into()));
        }
        // The length counts values, or bytes where the storage does not know what it holds.
        let width = if function == "_rebuild_tensor_v3" { 1 } else { kind.width() as u64 };
        let stored = self.archive.locate(&format!("{}/data/{key}", self.root)).and_then(|range| {
            if (length as u64).checked_mul(width) != Some(range.end - range.start) {
                let message = format!(
                    "says that its storage holds {length} values, but it has {} bytes",
                    range.end - range.start
                );
                return Err(message);
            }
            Ok(Stored::new(kind, shape, strides, offset, range)?)
        });
        // The archive's folder may have a long name, and there may be many such tensors.
        Some(stored.map_err(|message| message.chars().take(200).collect()))
    }
}

/// What a zip archive is that is no checkpoint, and what would be one.
fn another_format(archive: &Archive) -> Option<&'static str> {
    let below = |name: &str, part: &str| name.split_once('/').is_some_and(|(_, rest)| rest.starts_with(part));
    if archive.names().any(|n| below(n, "code/") || below(n, "constants.pkl")) {
        return Some(
            "a TorchScript archive, which holds code, and none is ever run; in Python, \
             torch.save(torch.jit.load(\"FILE\").state_dict(), \"weights.pth\") saves its weights alone",
        );
    }
    if archive
        .names()
        .any(|n| below(n, "archive_format") || below(n, "models/") || n == "serialized_exported_program.json")
    {
        return Some(
            "an archive of torch.export, which holds a program; in Python, \
             torch.save(torch.export.load(\"FILE\").state_dict, \"weights.pth\") saves its weights alone",
        );
    }
    if archive.names().any(|n| n == "model.weights.h5") {
        return Some(
            "a Keras archive; networks of PyTorch are supported, by the weights that torch.save(model.state_dict(), \"weights.pth\") saves",
        );
    }
    let mut names = archive.names().peekable();
    let arrays = names.peek().is_some() && names.all(|n| n.rsplit_once('.').is_some_and(|(_, kind)| kind == "npy"));
    arrays.then_some("arrays of NumPy (.npz); in Python, torch.save({name: torch.from_numpy(array)}, \"weights.pth\") saves them as tensors")
}

#[cfg(test)]
mod tests {
    use microtome_io::bytes::Memory;

    use super::*;

    fn checkpoint() -> Vec<u8> {
        use super::super::fixture::{Item, archive, dict};
        archive(&dict([
            ("weights", dict([("a", Item::Tensor(vec![2, 3], vec![1., 2., 3., 4., 5., 6.]))])),
            ("name", Item::Text("trainer".into())),
        ]))
    }

    /// Opens the bytes and reads every tensor that they seem to hold.
    fn read_all(bytes: &[u8]) -> Result<Vec<Vec<f32>>> {
        let file = File::open(Arc::new(Memory::new("checkpoint", bytes.to_vec())))?;
        let Some(weights) = file.entry(file.root(), "weights") else { return Ok(Vec::new()) };
        let Value::Dict(entries) = file.value(weights) else { return Ok(Vec::new()) };
        let tensors = entries.iter().filter_map(|(_, value)| file.tensor(*value));
        tensors
            .map(|tensor| match tensor {
                Ok(tensor) => Ok(tensor.read(&**file.archive.source())?.to_vec()),
                Err(clause) => Err(Error::format(file.path(), clause)),
            })
            .collect()
    }

    #[test]
    fn a_checkpoint_is_read() {
        assert_eq!(read_all(&checkpoint()).unwrap(), [[1., 2., 3., 4., 5., 6.]]);
    }

    #[test]
    fn a_cut_off_checkpoint_is_an_error_wherever_it_is_cut() {
        let bytes = checkpoint();
        for length in 0..bytes.len() {
            assert!(read_all(&bytes[..length]).is_err(), "{length} of {} bytes", bytes.len());
        }
    }

    #[test]
    fn no_changed_byte_makes_it_panic() {
        let bytes = checkpoint();
        for at in 0..bytes.len() {
            for value in [0, 1, 0x7f, 0xff, bytes[at] ^ 0x10] {
                let mut changed = bytes.clone();
                changed[at] = value;
                // Either outcome will do: some bytes are values of the tensor.
                drop(read_all(&changed));
            }
        }
    }

    proptest::proptest! {
        #[test]
        fn no_pickle_makes_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            drop(Pickle::parse(&bytes));
        }
    }
}
