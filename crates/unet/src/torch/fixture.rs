//! Writes what `torch.save` writes, for tests: a stored zip archive with a protocol 2 pickle.

use std::path::Path;

use crate::fuzz::archive::zip;

/// A value of the pickle.
#[derive(Debug, Clone)]
pub(crate) enum Item {
    None,
    Int(i32),
    Text(String),
    Tuple(Vec<Item>),
    Dict(Vec<(String, Item)>),
    /// A contiguous f32 tensor of this shape.
    Tensor(Vec<usize>, Vec<f32>),
    /// Another look at the storage of a tensor, which are numbered as they come.
    View(View),
}

/// A tensor without a storage of its own; all counts are in values.
#[derive(Debug, Clone, Default)]
pub(crate) struct View {
    pub(crate) storage: usize,
    /// What the pickle says that the storage holds.
    pub(crate) length: i32,
    pub(crate) offset: i32,
    pub(crate) shape: Vec<i32>,
    pub(crate) strides: Vec<i32>,
}

pub(crate) fn dict<const N: usize>(entries: [(&str, Item); N]) -> Item {
    Item::Dict(entries.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())
}

/// Saves `item` as a checkpoint.
pub(crate) fn save(path: &Path, item: &Item) {
    std::fs::write(path, archive(item)).unwrap();
}

pub(crate) fn archive(item: &Item) -> Vec<u8> {
    let mut storages = Vec::new();
    let mut pickle = b"\x80\x02".to_vec();
    write(item, &mut pickle, &mut storages);
    pickle.push(b'.');
    let mut members = vec![("root/data.pkl".to_owned(), pickle), ("root/byteorder".to_owned(), b"little".to_vec())];
    members.extend(storages.into_iter().enumerate().map(|(i, bytes)| (format!("root/data/{i}"), bytes)));
    zip(&members)
}

fn write(item: &Item, out: &mut Vec<u8>, storages: &mut Vec<Vec<u8>>) {
    let text = |out: &mut Vec<u8>, text: &str| {
        out.push(b'X');
        out.extend((text.len() as u32).to_le_bytes());
        out.extend(text.as_bytes());
    };
    let int = |out: &mut Vec<u8>, value: i32| {
        out.push(b'J');
        out.extend(value.to_le_bytes());
    };
    match item {
        Item::None => out.push(b'N'),
        Item::Int(value) => int(out, *value),
        Item::Text(value) => text(out, value),
        Item::Tuple(items) => {
            out.push(b'(');
            for i in items {
                write(i, out, storages);
            }
            out.push(b't');
        }
        Item::Dict(entries) => {
            out.extend(b"}(");
            for (key, value) in entries {
                text(out, key);
                write(value, out, storages);
            }
            out.push(b'u');
        }
        Item::Tensor(shape, values) => {
            let strides: Vec<usize> = (0..shape.len()).map(|i| shape[i + 1..].iter().product()).collect();
            let signed = |values: &[usize]| values.iter().map(|v| *v as i32).collect();
            let view = View {
                storage: storages.len(),
                length: values.len() as i32,
                offset: 0,
                shape: signed(shape),
                strides: signed(&strides),
            };
            storages.push(values.iter().flat_map(|v| v.to_le_bytes()).collect());
            write(&Item::View(view), out, storages);
        }
        Item::View(View { storage, length, offset, shape, strides }) => {
            out.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
            text(out, "storage");
            out.extend(b"ctorch\nFloatStorage\n");
            text(out, &storage.to_string());
            text(out, "cpu");
            int(out, *length);
            out.extend(b"tQ");
            int(out, *offset);
            for extents in [shape, strides] {
                out.push(b'(');
                extents.iter().for_each(|v| int(out, *v));
                out.push(b't');
            }
            out.extend(b"\x89ccollections\nOrderedDict\n)RtR");
        }
    }
}
