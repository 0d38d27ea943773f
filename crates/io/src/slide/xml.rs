//! Descriptions in XML, as scanners write them into a tag of a TIFF.
//!
//! The parser ([`roxmltree`]) takes neither document types nor entities of a file's own. What is checked here before it
//! starts are the things that it does in a time that grows with the square of the text: comparing the attributes of an
//! element, inheriting namespaces, joining `CDATA` sections.

use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, Result};

/// Bytes of a description. The largest are those of Philips, which hold two pictures in base64: a few megabytes.
const MAX_BYTES: usize = 64 << 20;
/// Elements, texts and comments. A slide of 200000 x 200000 pixels in tiles of 1024 has 76000 joints between tiles.
const MAX_NODES: u32 = 1 << 20;
/// Attributes of an element, as counted by equals signs between two `<`. Ventana's `iScan` has about 60.
const MAX_ATTRIBUTES: usize = 256;
/// Declarations of namespaces.
const MAX_NAMESPACES: usize = 64;
/// `CDATA` sections.
const MAX_CDATA: usize = 64;

/// Parses a description; `what` names it in messages.
///
/// # Errors
/// [`Error::Limits`] for one that is too large or too involved, [`Error::Format`] for one that is no XML.
pub(super) fn parse<'a>(path: &Path, what: &str, text: &'a str) -> Result<Document<'a>> {
    let text = text.trim_start_matches('\u{feff}').trim();
    let limits = |why: &str, limit: usize| {
        Err(Error::limits(path, format!("the XML of {what} has more {why} than the limit, which is {limit}")))
    };
    if text.len() > MAX_BYTES {
        return limits("bytes", MAX_BYTES);
    }
    // No '<' can stand inside a tag, so that each attribute lies between two of them.
    if text.split('<').any(|piece| piece.bytes().filter(|&byte| byte == b'=').nth(MAX_ATTRIBUTES).is_some()) {
        return limits("attributes of one element", MAX_ATTRIBUTES);
    }
    if text.matches("xmlns").nth(MAX_NAMESPACES).is_some() {
        return limits("namespaces", MAX_NAMESPACES);
    }
    if text.matches("<![CDATA[").nth(MAX_CDATA).is_some() {
        return limits("CDATA sections", MAX_CDATA);
    }
    let options = ParsingOptions { nodes_limit: MAX_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|error| match error {
        roxmltree::Error::NodesLimitReached => {
            Error::limits(path, format!("the XML of {what} has more nodes than the limit, which is {MAX_NODES}"))
        }
        // The parser quotes names out of the file, which may hold line breaks.
        error => Error::format(path, format!("{what} is no sound XML: {}", error.to_string().replace('\n', " "))),
    })
}

/// The child elements of this name, whatever their namespace.
pub(super) fn children<'a, 'i>(node: Node<'a, 'i>, name: &'static str) -> impl Iterator<Item = Node<'a, 'i>> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

/// The first element at the end of a path of names.
pub(super) fn find<'a, 'i>(node: Node<'a, 'i>, path: &[&'static str]) -> Option<Node<'a, 'i>> {
    path.iter().try_fold(node, |node, name| children(node, name).next())
}

/// The text of the first element at the end of a path of names.
pub(super) fn text(node: Node<'_, '_>, path: &[&'static str]) -> Option<String> {
    find(node, path)?.text().map(|text| text.trim().to_owned())
}

/// The bytes that base64 stands for. Characters that do not belong to it are skipped, as GLib does (line breaks mostly).
pub(super) fn base64(text: &str) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut held) = (0_u32, 0);
    for byte in text.bytes() {
        let value = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            b'=' => break,
            _ => continue,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
            bits &= (1 << held) - 1;
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_others_write_it() {
        // printf 'any carnal pleas' | base64, and shorter.
        for (text, bytes) in [
            ("YW55IGNhcm5hbCBwbGVhcw==", &b"any carnal pleas"[..]),
            ("YW55IGNhcm5h\r\n bCBwbGVh", b"any carnal plea"),
            ("+/8=", b"\xfb\xff"),
            ("", b""),
            ("A", b""),
        ] {
            assert_eq!(base64(text), bytes, "{text}");
        }
    }

    #[test]
    fn what_would_take_long_is_refused_first() {
        let refusal = |text: String| parse(Path::new("x"), "a test", &text).unwrap_err();
        let many = |n: usize, piece: fn(usize) -> String| (0..n).map(piece).collect::<String>();
        for (text, words) in [
            (format!("<a {}/>", many(100_000, |i| format!("a{i}='>' "))), "attributes of one element"),
            (many(70, |i| format!("<a xmlns:n{i}='u{i}'>")), "namespaces"),
            (format!("<a>{}</a>", many(1000, |_| "<![CDATA[x]]>".into())), "CDATA sections"),
            (format!("<a>{}</a>", "<b/>".repeat(MAX_NODES as usize)), "nodes"),
        ] {
            let error = refusal(text);
            assert!(matches!(error, Error::Limits { .. }) && error.to_string().contains(words), "{error}");
        }
        for text in ["<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "<a>", "", "<a>&b;</a>"] {
            let error = refusal(text.into());
            assert!(matches!(error, Error::Format { .. }), "{error}");
        }
        // Depth costs neither stack nor time.
        parse(Path::new("x"), "a test", &("<a>".repeat(300_000) + &"</a>".repeat(300_000))).unwrap();
    }
}
