//! Files that hold the weights of one network under the names that its framework gives them.

mod content;
#[cfg(test)]
mod corpus;
#[cfg(test)]
mod memory;
mod names;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use microtome_io::bytes::ByteSource;

use crate::stored::Stored;
use crate::torch::{self, Value};
use crate::weights::{Weight, match_names};
use crate::{Architecture, Error, Result, bounded, safetensors_file};
use content::Content;

/// Keys under which frameworks and their users put the state dict.
pub(crate) const NESTED: [&str; 6] = ["state_dict", "model_state_dict", "model", "network", "net", "network_weights"];
/// More than any network of ours has, together with all that lies beside them. A few bytes are enough to put a tensor into a dictionary, and
/// each takes up to a kilobyte here.
const MAX_TENSORS: usize = 1 << 16;
/// Bytes of a tensor's name.
const MAX_NAME: usize = 1 << 10;
/// How many keys deep a state dict may lie in a checkpoint: `{"model": {"state_dict": ...}}`.
const DEPTH: usize = 2;

/// The tensors of a file by their names, and whatever lies beside them.
#[derive(Debug)]
pub(crate) struct StateDict {
    path: PathBuf,
    source: Arc<dyn ByteSource>,
    checkpoint: Option<torch::File>,
    tensors: BTreeMap<String, Stored>,
    /// Tensors without numbers that could be weights, such as counters, and why not.
    others: BTreeMap<String, String>,
}

impl StateDict {
    /// Opens a file by its content: what `torch.save` writes, or safetensors. Of a checkpoint, its tensors are what the first of these
    /// keys holds that holds any, itself or under another of them; with none of the keys, the file as a whole.
    ///
    /// # Errors
    /// If the file is neither, is damaged, or holds no tensors there.
    pub(crate) fn open(path: &Path, keys: &[&str]) -> Result<Self> {
        Self::read(bounded::map(path)?, keys)
    }

    /// The same with bytes from anywhere.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub(crate) fn read(source: Arc<dyn ByteSource>, keys: &[&str]) -> Result<Self> {
        let content = Content::of(&source.read_at(0..source.len().min(content::HEAD))?);
        let path = source.path().to_owned();
        let (checkpoint, held) = match content {
            Content::Other(message) => return Err(Error::unsupported(path, message)),
            Content::SafeTensors => (None, safetensors_file::tensors(&*source)?.into_iter().collect()),
            Content::Zip => {
                let file = torch::File::open(Arc::clone(&source))?;
                let held = match find(&file, file.root(), keys, DEPTH)? {
                    None => tensors(&file, file.root())?,
                    found => found,
                };
                let held = held.ok_or_else(|| no_state_dict(&file))?;
                (Some(file), held)
            }
        };
        let mut state = Self { path, source, checkpoint, tensors: BTreeMap::new(), others: BTreeMap::new() };
        for (name, tensor) in held {
            match tensor {
                Ok(tensor) => drop(state.tensors.insert(name, tensor)),
                Err(clause) => drop(state.others.insert(name, clause)),
            }
        }
        if state.tensors.is_empty() {
            let message = match state.others.first_key_value() {
                Some((name, clause)) => {
                    format!("a state dict without a tensor that could be a weight: {name} {clause}")
                }
                None => "a state dict without tensors".into(),
            };
            return Err(Error::format(&state.path, message));
        }
        Ok(state)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The checkpoint of PyTorch, for what lies beside the tensors; safetensors have nothing there.
    pub(crate) fn checkpoint(&self) -> Option<&torch::File> {
        self.checkpoint.as_ref()
    }

    /// The weights that the network uses, after checking that they are the ones that the file holds: each exactly once, none left over
    /// but those that play no part at inference. Only they are copied out of the file.
    ///
    /// Names count as they are; if they do not fit, without `module.`, `_orig_mod.` and what all of them begin with.
    ///
    /// # Errors
    /// Lists what is missing or left over, or names a weight of another shape, or one that cannot be read.
    pub(crate) fn weights(&self, architecture: &Architecture) -> Result<BTreeMap<String, Weight>> {
        let network = architecture.network();
        let used = network.weights();
        let used_names: BTreeSet<&str> = used.iter().map(|w| w.name.as_str()).collect();
        let held_names: Vec<&str> = self.tensors.keys().map(String::as_str).collect();
        let mut best: Option<(usize, BTreeMap<&str, &Stored>)> = None;
        for reading in names::readings(&held_names) {
            let plays_no_part = |name: &str| {
                (name.ends_with(".num_batches_tracked") || architecture.is_unused(name)) && !used_names.contains(name)
            };
            let held = reading.iter().copied().zip(self.tensors.values());
            let count = reading.len();
            let named: BTreeMap<&str, &Stored> = held.collect();
            // Two names that become one are no way to read them.
            if named.len() < count {
                continue;
            }
            let named: BTreeMap<_, _> = named.into_iter().filter(|(name, _)| !plays_no_part(name)).collect();
            let found = named.keys().filter(|name| used_names.contains(*name)).count();
            let wrong = used_names.len() - found + named.len() - found;
            if best.as_ref().is_none_or(|(least, _)| wrong < *least) {
                best = Some((wrong, named));
            }
        }
        let (wrong, named) = best.unwrap_or_default();
        if wrong > 0
            && let Some((name, clause)) = self.others.iter().find(|(name, _)| used_names.contains(name.as_str()))
        {
            return Err(Error::unsupported(&self.path, format!("{name} {clause}")));
        }
        match_names(&self.path, &network, named.iter().map(|(name, tensor)| (*name, tensor.shape())))?;
        // Tensors may share a storage, but weights do not: without this, one storage could be copied a thousand times.
        let bytes = used.iter().map(|w| named[w.name.as_str()].bytes()).fold(0, u64::saturating_add);
        if bytes > self.source.len() {
            let message =
                format!("its weights take {bytes} bytes, but the file has {}: they overlap", self.source.len());
            return Err(Error::format(&self.path, message));
        }
        let read = |name: &str| {
            let tensor = named[name];
            let values = tensor.read(&*self.source)?;
            Ok((name.to_owned(), Weight { shape: tensor.shape().to_vec(), values }))
        };
        used.iter().map(|w| read(&w.name)).collect()
    }

    /// Reads all tensors, one after the other: for what checks that none of them can do harm.
    ///
    /// # Errors
    /// If one cannot be read.
    pub(crate) fn read_each(&self, mut take: impl FnMut(&str, Weight)) -> Result<()> {
        for (name, tensor) in &self.tensors {
            take(name, Weight { shape: tensor.shape().to_vec(), values: tensor.read(&*self.source)? });
        }
        Ok(())
    }
}

type Held = BTreeMap<String, Result<Stored, String>>;

/// What the first of the keys holds that holds tensors, there or further down.
fn find(file: &torch::File, dict: u32, keys: &[&str], depth: usize) -> Result<Option<Held>> {
    for entry in keys.iter().filter_map(|key| file.entry(dict, key)) {
        let mut found = tensors(file, entry)?;
        if found.is_none() && depth > 1 {
            found = find(file, entry, keys, depth - 1)?;
        }
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// The tensors of a dictionary, if it holds any. As in Python, the last one counts where a name repeats.
fn tensors(file: &torch::File, dict: u32) -> Result<Option<Held>> {
    let Value::Dict(entries) = file.value(dict) else { return Ok(None) };
    let named = entries.iter().filter_map(|(name, value)| Some((file.text(*name)?, file.tensor(*value)?)));
    let mut held = Held::new();
    for (number, (name, tensor)) in named.enumerate() {
        if number == MAX_TENSORS {
            return Err(Error::limits(file.path(), format!("more than {MAX_TENSORS} tensors in a state dict")));
        }
        if name.len() > MAX_NAME {
            let message = format!("a tensor's name of {} bytes; up to {MAX_NAME} are read", name.len());
            return Err(Error::limits(file.path(), message));
        }
        held.insert(name.to_owned(), tensor);
    }
    Ok((!held.is_empty()).then_some(held))
}

/// Says what a checkpoint holds where a state dict was looked for.
fn no_state_dict(file: &torch::File) -> Error {
    const SHOWN: usize = 6;
    let message = match file.value(file.root()) {
        Value::Dict(entries) => {
            let keys: Vec<&str> = entries.iter().filter_map(|(key, _)| file.text(*key)).take(SHOWN).collect();
            let more = if entries.len() > keys.len() { " and more" } else { "" };
            match keys.as_slice() {
                [] => "no state dict: names with tensors".to_owned(),
                keys => format!("no state dict: names with tensors; there are {}{more}", keys.join(", ")),
            }
        }
        _ if file.tensor(file.root()).is_some() => "a tensor, not a state dict: names with tensors".into(),
        _ => "no state dict: names with tensors".into(),
    };
    Error::format(file.path(), message)
}

#[cfg(test)]
mod tests {
    use microtome_io::bytes::Memory;
    use safetensors::tensor::{Dtype, TensorView};

    use super::*;
    use crate::architecture::tests::tiny;
    use crate::torch::fixture::{Item, View, archive, dict};

    fn open(bytes: Vec<u8>) -> Result<StateDict> {
        StateDict::read(Arc::new(Memory::new("weights", bytes)), &NESTED)
    }

    fn network() -> Architecture {
        Architecture::PlainConvUnet(tiny())
    }

    /// The weights of the network under names that `name` makes of theirs.
    fn entries(name: impl Fn(&str) -> String) -> Vec<(String, Item)> {
        let weights = network().network().weights().into_iter().enumerate();
        let item = |(i, w): (usize, crate::network::WeightShape)| {
            let n: usize = w.shape.iter().product();
            (name(&w.name), Item::Tensor(w.shape, (0..n).map(|j| (i * 100 + j) as f32).collect()))
        };
        weights.map(item).collect()
    }

    fn plain() -> Item {
        Item::Dict(entries(ToOwned::to_owned))
    }

    fn weights(item: &Item) -> Result<BTreeMap<String, Weight>> {
        open(archive(item))?.weights(&network())
    }

    #[test]
    fn a_state_dict_is_found_under_its_keys() {
        let expected = weights(&plain()).unwrap();
        let epoch = || ("epoch", Item::Int(3));
        for item in [
            dict([("state_dict", plain()), epoch()]),
            dict([epoch(), ("model", dict([("net", plain())]))]),
            // What a key holds that is no dictionary of tensors is passed over.
            dict([("state_dict", Item::Int(1)), ("model", dict([epoch()])), ("net", plain())]),
        ] {
            assert_eq!(weights(&item).unwrap(), expected);
        }
        let message = |item: Item| open(archive(&item)).unwrap_err().to_string();
        assert_eq!(
            message(dict([epoch(), ("netG", plain()), ("netD", plain())])),
            "weights: no state dict: names with tensors; there are epoch, netG, netD"
        );
        assert_eq!(message(Item::None), "weights: no state dict: names with tensors");
        let deep = dict([("model", dict([("model", dict([("model", plain())]))]))]);
        assert!(message(deep).contains("there are model"));
        assert_eq!(
            message(Item::Tensor(vec![1], vec![0.0])),
            "weights: a tensor, not a state dict: names with tensors"
        );
    }

    #[test]
    fn prefixes_are_taken_off_where_the_network_wants_it() {
        let expected = weights(&plain()).unwrap();
        for prefix in
            ["module.", "_orig_mod.", "module._orig_mod.", "model.", "net.", "network.", "model.net.", "module.model."]
        {
            let named = Item::Dict(entries(|name| format!("{prefix}{name}")));
            assert_eq!(weights(&named).unwrap(), expected, "{prefix}");
        }
        // One tensor beside the network is named, not passed over.
        let mut others = entries(|name| format!("model.{name}"));
        others.push(("criterion.weight".into(), Item::Tensor(vec![1], vec![1.0])));
        let error = weights(&Item::Dict(others)).unwrap_err().to_string();
        assert!(error.contains("unused criterion.weight, model.decoder."), "{error}");
        // A name with and without a wrapper: none of them is more right than the other.
        let mut twice = entries(ToOwned::to_owned);
        twice.push((format!("module.{}", twice[0].0), twice[0].1.clone()));
        let error = weights(&Item::Dict(twice)).unwrap_err().to_string();
        assert!(error.contains("missing none; unused module.encoder.stages.0.0.convs.0.conv.weight"), "{error}");
    }

    #[test]
    fn many_names_for_one_storage_are_refused() {
        // Seven thousand values, and each weight takes the first ones of them.
        let network = network().network().weights();
        let largest = network.iter().map(|w| w.shape.iter().product::<usize>()).max().unwrap();
        let view = |shape: &[usize]| {
            let shape: Vec<i32> = shape.iter().map(|v| *v as i32).collect();
            let strides = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
            Item::View(View { storage: 0, length: largest as i32, offset: 0, shape, strides })
        };
        let first = ("a.num_batches_tracked".to_owned(), Item::Tensor(vec![largest], vec![0.0; largest]));
        let views = network.iter().map(|w| (w.name.clone(), view(&w.shape)));
        let named: Vec<_> = std::iter::once(first).chain(views).collect();
        let state = open(archive(&Item::Dict(named))).unwrap();
        let error = state.weights(&self::network()).unwrap_err().to_string();
        assert!(error.contains("its weights take ") && error.ends_with(": they overlap"), "{error}");
    }

    #[test]
    fn tensors_that_are_not_what_they_say_are_refused_if_they_are_used() {
        let message = |view: View| {
            let named = dict([("a", Item::Tensor(vec![6], vec![0.0; 6])), ("b", Item::View(view))]);
            let state = open(archive(&named)).unwrap();
            assert_eq!(state.tensors.len() + state.others.len(), 2);
            state.others.get("b").cloned().unwrap_or_default()
        };
        let view = View { storage: 0, length: 6, offset: 0, shape: vec![2, 3], strides: vec![3, 1] };
        assert_eq!(message(view.clone()), "");
        assert_eq!(message(View { offset: 1, ..view.clone() }), "reaches beyond its storage");
        assert_eq!(message(View { strides: vec![0, 0], ..view.clone() }), "has values that overlap");
        assert_eq!(
            message(View { length: 7, ..view.clone() }),
            "says that its storage holds 7 values, but it has 24 bytes"
        );
        assert_eq!(message(View { storage: 9, ..view.clone() }), "the archive has no member root/data/9");
        assert_eq!(message(View { strides: vec![1], ..view.clone() }), "has not as many strides as axes");
        let nothing = "is made by _rebuild_tensor_v2 from what does not describe a tensor";
        assert_eq!(message(View { shape: vec![-2, 3], ..view.clone() }), nothing);
        assert_eq!(message(View { offset: -1, ..view.clone() }), nothing);
        assert_eq!(message(View { length: -1, ..view }), nothing);
    }

    #[test]
    fn a_few_bytes_do_not_become_many_tensors() {
        let view = || Item::View(View { storage: 0, length: 1, offset: 0, shape: vec![1], strides: vec![1] });
        let named = |count: usize, name: &dyn Fn(usize) -> String| {
            let first = ("a".to_owned(), Item::Tensor(vec![1], vec![0.0]));
            let others = (1..count).map(|i| (name(i), view()));
            open(archive(&Item::Dict(std::iter::once(first).chain(others).collect())))
        };
        assert_eq!(named(MAX_TENSORS, &|i| i.to_string()).unwrap().tensors.len(), MAX_TENSORS);
        let error = named(MAX_TENSORS + 1, &|_| "b".into()).unwrap_err().to_string();
        assert_eq!(error, "weights: more than 65536 tensors in a state dict");
        let error = named(2, &|_| "b".repeat(1025)).unwrap_err().to_string();
        assert_eq!(error, "weights: a tensor's name of 1025 bytes; up to 1024 are read");
    }

    /// The same weights as safetensors, of this kind.
    fn safetensors(dtype: Dtype, bytes: impl Fn(f32) -> Vec<u8>) -> Vec<u8> {
        let expected = weights(&plain()).unwrap();
        let raw: Vec<(String, Vec<usize>, Vec<u8>)> = expected
            .into_iter()
            .map(|(name, w)| (name, w.shape, w.values.iter().flat_map(|v| bytes(*v)).collect()))
            .collect();
        let views = raw.iter().map(|(n, s, b)| (n.as_str(), TensorView::new(dtype, s.clone(), b).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    #[test]
    fn safetensors_of_every_kind_are_read() {
        let expected = weights(&plain()).unwrap();
        let read = |bytes: Vec<u8>| open(bytes).unwrap().weights(&network()).unwrap();
        assert_eq!(read(safetensors(Dtype::F32, |v| v.to_le_bytes().to_vec())), expected);
        assert_eq!(read(safetensors(Dtype::F64, |v| f64::from(v).to_le_bytes().to_vec())), expected);
        let halved = read(safetensors(Dtype::BF16, |v| ((v.to_bits() >> 16) as u16).to_le_bytes().to_vec()));
        for (name, weight) in halved {
            let pairs = weight.values.iter().zip(&*expected[&name].values);
            assert!(pairs.into_iter().all(|(a, b)| (a - b).abs() <= b / 128.0), "{name}");
        }
        let error = open(safetensors(Dtype::I32, |_| vec![0; 4])).unwrap_err().to_string();
        assert!(error.ends_with("is I32; F16, BF16, F32 and F64 are read"), "{error}");
    }

    #[test]
    fn damaged_safetensors_are_refused() {
        let bytes = safetensors(Dtype::F32, |v| v.to_le_bytes().to_vec());
        let message = |bytes: Vec<u8>| open(bytes).unwrap_err().to_string();
        assert_eq!(message(bytes[..100].to_vec()), "weights: a safetensors file that is cut off");
        assert!(message(bytes[..bytes.len() - 1].to_vec()).contains("not safetensors: incomplete metadata"));
        assert!(message([&bytes[..], b"\0"].concat()).contains("not safetensors: incomplete metadata"));
        let with_length = |length: u64| [&length.to_le_bytes(), &bytes[8..]].concat();
        assert!(message(with_length(1 << 30)).contains("header of 1073741824 bytes; up to 16777216 are read"));
        assert!(message(with_length(u64::MAX)).contains("neither a checkpoint of PyTorch nor safetensors"));
        for length in 0..bytes.len() {
            assert!(open(bytes[..length].to_vec()).is_err(), "{length}");
        }
    }
}
