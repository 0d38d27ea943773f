//! What a file is, by its first bytes, whatever its name says.

use crate::safetensors_file::is_safetensors;

/// Bytes that [`Content::of`] looks at.
pub(super) const HEAD: u64 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// A zip archive, which may be what `torch.save` writes.
    Zip,
    SafeTensors,
    /// Something else: what it is, and what to do.
    Other(&'static str),
}

impl Content {
    /// What begins like this.
    pub(super) fn of(head: &[u8]) -> Self {
        if head.starts_with(b"PK") {
            return Self::Zip;
        }
        if is_safetensors(head) {
            return Self::SafeTensors;
        }
        let known = OTHERS.iter().find(|(start, _)| head.starts_with(start)).map(|(_, message)| *message);
        Self::Other(known.or_else(|| unmarked(head)).unwrap_or(
            "neither a checkpoint of PyTorch nor safetensors; in Python, torch.save(model.state_dict(), \"weights.pth\") writes one",
        ))
    }
}

/// Files with a mark at their start.
const OTHERS: &[(&[u8], &str)] = &[
    (
        // The number 0x1950a86a20f9469cfc6c as a pickle.
        b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19",
        "a checkpoint in the format of before PyTorch 1.6; in Python, \
         torch.save(torch.load(\"FILE\", map_location=\"cpu\", weights_only=True), \"weights.pth\") writes it in today's",
    ),
    (b"\x80\x02", PICKLE),
    (b"\x80\x03", PICKLE),
    (b"\x80\x04", PICKLE),
    (b"\x80\x05", PICKLE),
    (
        b"\x89HDF\r\n\x1a\n",
        "an HDF5 file, as Keras writes; networks of PyTorch are supported, by the weights that \
         torch.save(model.state_dict(), \"weights.pth\") saves",
    ),
    (
        b"GGUF",
        "a GGUF file; networks of PyTorch are supported, by the weights that torch.save(model.state_dict(), \"weights.pth\") saves",
    ),
    (
        b"\x93NUMPY",
        "an array of NumPy; a state dict holds all weights of a network: torch.save(model.state_dict(), \"weights.pth\")",
    ),
    (b"\x1f\x8b", "compressed by gzip; unpack it first"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd; unpack it first"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"version https://git-lfs", "a pointer of Git LFS in place of the file; `git lfs pull` fetches it"),
    (b"<", "a web page or another text in angle brackets; the download gave that in place of the weights"),
    (b"{", "JSON, which holds no weights"),
];

const PICKLE: &str = "a pickle of its own, not what torch.save writes; in Python, torch.save(model.state_dict(), \"weights.pth\") \
                      saves the weights of a network";
const ONNX: &str = "an ONNX file, which holds a graph; needed are the weights of a network that is known by name: in the program that \
                    exported it, torch.save(model.state_dict(), \"weights.pth\") saves them";
const TENSORFLOW: &str = "a graph of TensorFlow; networks of PyTorch are supported, by the weights that \
                          torch.save(model.state_dict(), \"weights.pth\") saves";

/// Files that are known by what they hold.
fn unmarked(head: &[u8]) -> Option<&'static str> {
    if head.is_empty() {
        return Some("an empty file");
    }
    if head.get(257..262) == Some(b"ustar") {
        return Some("a tar archive; unpack it first");
    }
    if head.get(4..8) == Some(b"TFL3") {
        return Some(TENSORFLOW);
    }
    match head {
        // Protocol buffers. ONNX: field 1 is the version of its format, 3 to 13 so far, field 2 the producer, field 7 the graph.
        // A SavedModel: field 1 is 1, field 2 the first graph. A GraphDef: field 1 is a node, whose field 1 is its name.
        [0x08, 3..=32, 0x12 | 0x1a | 0x22 | 0x3a | 0x42, ..] => Some(ONNX),
        [0x08, 1, 0x12, ..] | [0x0a, _, 0x0a, ..] => Some(TENSORFLOW),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_known_by_their_content() {
        let message = |head: &[u8]| match Content::of(head) {
            Content::Other(message) => message,
            other => panic!("{other:?}"),
        };
        assert_eq!(Content::of(b"PK\x03\x04"), Content::Zip);
        assert_eq!(Content::of(b"\x40\0\0\0\0\0\0\0{\"a\""), Content::SafeTensors);
        assert!(message(b"\x40\0\0\0\0\0\0\0<").starts_with("neither a checkpoint"));
        assert!(message(b"").starts_with("an empty file"));
        assert!(message(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M").contains("before PyTorch 1.6"));
        assert!(message(b"\x80\x04\x95").starts_with("a pickle of its own"));
        assert!(message(b"\x89HDF\r\n\x1a\n\0").contains("Keras"));
        // The first bytes of an export by PyTorch 2.7, and of one by PyTorch 1.13.
        assert!(message(b"\x08\x0a\x12\x07pytorch").starts_with("an ONNX file"));
        assert!(message(b"\x08\x07\x12\x07pytorch").starts_with("an ONNX file"));
        assert!(message(b"\x08\x01\x12\x8a\x05").starts_with("a graph of TensorFlow"));
        assert!(message(b"\x1c\0\0\0TFL3").starts_with("a graph of TensorFlow"));
        assert!(message(b"version https://git-lfs.github.com/spec/v1").contains("git lfs pull"));
        assert!(message(b"<!DOCTYPE html>").starts_with("a web page"));
    }
}
