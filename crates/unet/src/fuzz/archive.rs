//! Archives around what is tested.

/// An archive of these members as PyTorch writes it: stored, and with sizes in the central directory only.
pub(crate) fn zip(members: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (name, bytes) in members {
        let (offset, length) = (file.len() as u32, bytes.len() as u32);
        let padding = [0_u8; 7];
        file.extend(b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0");
        file.extend([0; 12]);
        file.extend((name.len() as u16).to_le_bytes());
        file.extend((padding.len() as u16).to_le_bytes());
        file.extend(name.as_bytes());
        file.extend(padding);
        file.extend(bytes);
        directory.extend(b"PK\x01\x02\0\0\0\0\x08\x08\0\0\0\0\0\0\0\0\0\0");
        directory.extend(length.to_le_bytes());
        directory.extend(length.to_le_bytes());
        directory.extend((name.len() as u16).to_le_bytes());
        directory.extend([0; 12]);
        directory.extend(offset.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let (offset, size, count) = (file.len() as u32, directory.len() as u32, members.len() as u16);
    file.extend(directory);
    file.extend(b"PK\x05\x06\0\0\0\0");
    file.extend(count.to_le_bytes());
    file.extend(count.to_le_bytes());
    file.extend(size.to_le_bytes());
    file.extend(offset.to_le_bytes());
    file.extend([0; 2]);
    file
}

/// The smallest checkpoint that nnU-Net's results may have: one weight, and the settings of a `2d` configuration.
pub(super) fn checkpoint() -> Vec<u8> {
    let text = |text: &str| [&b"X"[..], &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat();
    let storage = [text("storage"), b"ctorch\nFloatStorage\n".to_vec(), text("0"), text("cpu")].concat();
    let tensor = [&b"ctorch._utils\n_rebuild_tensor_v2\n(("[..], &storage, b"K\x01tQK\0(K\x01t(K\x01t\x89NtR"].concat();
    let dict = |entries: &[(&str, Vec<u8>)]| {
        let entries: Vec<u8> = entries.iter().flat_map(|(key, value)| [text(key), value.clone()].concat()).collect();
        [&b"}("[..], &entries, b"u"].concat()
    };
    let root = dict(&[
        ("network_weights", dict(&[("a", tensor)])),
        ("init_args", dict(&[("configuration", text("2d"))])),
        ("trainer_name", text("nnUNetTrainer")),
    ]);
    pickled(&[b"\x80\x02", &root[..], b"."].concat())
}

/// A checkpoint of this pickle, with two storages.
pub(super) fn pickled(pickle: &[u8]) -> Vec<u8> {
    let member = |name: &str, bytes: &[u8]| (format!("model/{name}"), bytes.to_vec());
    zip(&[member("data.pkl", pickle), member("data/0", &[0; 4]), member("data/1", &[1; 48])])
}
