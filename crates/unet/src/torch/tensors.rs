//! A `.pth` file: its pickle, and the tensors that the pickle refers to.

use std::path::Path;

use candle_core::{DType, Device};

use super::pickle::{Id, Pickle, Value};
use super::zip::Archive;
use crate::{Error, Result};

/// Names, plans and logs of the largest real checkpoints take a few MiB.
const MAX_PICKLE: u64 = 32 << 20;

/// An open checkpoint. Tensors are read one by one, so that what is not asked for (half of the file is the optimizer's) costs nothing.
#[derive(Debug)]
pub(crate) struct File {
    archive: Archive,
    /// The archive's one top folder, named after the file at the time of writing.
    root: String,
    pickle: Pickle,
}

/// Where a tensor's values lie.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) shape: Vec<usize>,
    strides: Vec<usize>,
    /// In values, from the start of the storage.
    offset: usize,
    storage: String,
    dtype: DType,
}

impl File {
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let archive = Archive::open(path)?;
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
        if let Some(size @ 0..=16) = archive.size(&order)
            && archive.read(&order, 0, size)? != b"little"
        {
            return Err(Error::unsupported(path, "written on a big-endian machine"));
        }
        let bytes = archive.read(&member, 0, size)?;
        let pickle = Pickle::parse(&bytes).map_err(|m| Error::format(path, format!("{member} cannot be read: {m}")))?;
        Ok(Self { archive, root, pickle })
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
        let Value::Sequence(items) = self.value(id) else { return None };
        // `torch.Tensor` itself stops at 64 dimensions.
        (items.len() <= 64).then(|| items.iter().map(|i| self.int(*i)).collect()).flatten()
    }

    /// The tensor that a value stands for, or `None` if it stands for none that holds floating-point numbers.
    pub(crate) fn tensor(&self, id: Id) -> Option<Tensor> {
        let (module, name, arguments) = self.pickle.call(id)?;
        match (module, name) {
            ("torch._utils", "_rebuild_parameter") => {
                // The parameter's tensor; it is no parameter itself.
                let inner = *arguments.first()?;
                matches!(self.pickle.call(inner)?, (_, "_rebuild_tensor_v2", _)).then(|| self.tensor(inner)).flatten()
            }
            ("torch._utils", "_rebuild_tensor_v2") => {
                let [storage, offset, shape, strides, ..] = arguments else { return None };
                let Value::Persistent(storage) = self.value(*storage) else { return None };
                let Value::Sequence(storage) = self.value(*storage) else { return None };
                let [_, class, key, ..] = storage.as_slice() else { return None };
                let Value::Global(_, class) = self.value(*class) else { return None };
                let dtype = match class.as_str() {
                    "FloatStorage" => DType::F32,
                    "DoubleStorage" => DType::F64,
                    "HalfStorage" => DType::F16,
                    "BFloat16Storage" => DType::BF16,
                    _ => return None,
                };
                let (shape, strides) = (self.extents(*shape)?, self.extents(*strides)?);
                let storage = format!("{}/data/{}", self.root, self.text(*key)?);
                let tensor = Tensor { shape, strides, offset: self.int(*offset)?, storage, dtype };
                (tensor.shape.len() == tensor.strides.len()).then_some(tensor)
            }
            _ => None,
        }
    }

    /// A tensor's values as f32, row by row. No more is allocated than its storage holds.
    pub(crate) fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let path = self.archive.path();
        let outside = || Error::format(path, format!("a tensor reaches beyond its storage {}", tensor.storage));
        let elements = tensor.shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d)).ok_or_else(outside)?;
        if elements == 0 {
            return Ok(Vec::new());
        }
        // Values from the first to the last that the strides reach.
        let last = tensor
            .shape
            .iter()
            .zip(&tensor.strides)
            .try_fold(0_usize, |last, (&d, &s)| last.checked_add((d - 1).checked_mul(s)?));
        let span = last.and_then(|l| l.checked_add(1)).ok_or_else(outside)?;
        if elements > span {
            return Err(Error::unsupported(path, format!("a tensor whose values overlap in {}", tensor.storage)));
        }
        let width = tensor.dtype.size_in_bytes();
        let bytes = |values: usize| values.checked_mul(width).map(|b| b as u64).ok_or_else(outside);
        let raw = self.archive.read(&tensor.storage, bytes(tensor.offset)?, bytes(span)?)?;
        let values = candle_core::Tensor::from_raw_buffer(&raw, tensor.dtype, &[span], &Device::Cpu)
            .and_then(|t| t.to_dtype(DType::F32)?.to_vec1::<f32>())?;
        drop(raw);
        Ok(if elements == span { gather_dense(tensor, values) } else { gather(tensor, &values) })
    }
}

/// Most tensors lie row by row already.
fn gather_dense(tensor: &Tensor, values: Vec<f32>) -> Vec<f32> {
    let mut stride = 1;
    let contiguous = tensor.shape.iter().zip(&tensor.strides).rev().all(|(&extent, &s)| {
        let expected = stride;
        stride *= extent;
        extent == 1 || s == expected
    });
    if contiguous { values } else { gather(tensor, &values) }
}

/// Brings strided values (a channels-last convolution, a slice) into row order.
fn gather(tensor: &Tensor, values: &[f32]) -> Vec<f32> {
    let elements = tensor.shape.iter().product();
    let mut index = vec![0_usize; tensor.shape.len()];
    let mut out = Vec::with_capacity(elements);
    for _ in 0..elements {
        out.push(values[index.iter().zip(&tensor.strides).map(|(i, s)| i * s).sum::<usize>()]);
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < tensor.shape[axis] {
                break;
            }
            index[axis] = 0;
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_values_come_out_row_by_row() {
        let tensor = |shape: [usize; 2], strides: [usize; 2]| Tensor {
            shape: shape.to_vec(),
            strides: strides.to_vec(),
            offset: 0,
            storage: String::new(),
            dtype: DType::F32,
        };
        let values = vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0];
        assert_eq!(gather_dense(&tensor([2, 3], [3, 1]), values.clone()), values);
        assert_eq!(gather_dense(&tensor([2, 3], [1, 2]), values.clone()), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        assert_eq!(gather(&tensor([2, 2], [3, 2]), &values[..6]), [0.0, 2.0, 3.0, 5.0]);
    }
    fn checkpoint() -> Vec<u8> {
        use super::super::fixture::{Item, archive, dict};
        archive(&dict([
            ("weights", dict([("a", Item::Tensor(vec![2, 3], vec![1., 2., 3., 4., 5., 6.]))])),
            ("name", Item::Text("trainer".into())),
        ]))
    }

    /// Opens the bytes and reads every tensor that they seem to hold.
    fn read_all(bytes: &[u8]) -> Result<Vec<Vec<f32>>> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let file = File::open(file.path())?;
        let Some(weights) = file.entry(file.root(), "weights") else { return Ok(Vec::new()) };
        let Value::Dict(entries) = file.value(weights) else { return Ok(Vec::new()) };
        entries.iter().filter_map(|(_, value)| file.tensor(*value)).map(|tensor| file.read(&tensor)).collect()
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
        let error = read_all(b"garbage").unwrap_err().to_string();
        assert!(error.ends_with("not a PyTorch checkpoint (no zip archive, or one that is cut off)"), "{error}");
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
