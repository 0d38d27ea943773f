//! XML that a slide carries in a description: parsed into a tree, after a look at what the tree would cost.
//!
//! The parser's own bounds are those of memory: an element of a million attributes keeps it comparing names for minutes,
//! and each element that declares a namespace copies all that are in scope. So a first pass over the text, without
//! memory, counts what makes these grow; nothing that a microscope writes comes near the limits.

use std::path::Path;

use roxmltree::{Document, Node, ParsingOptions};

use crate::{Error, Result};

/// Bytes of a document. OME-XML of a thousand planes with all that was known of each takes a few MB.
pub(super) const MOST_BYTES: u64 = 64 << 20;
/// Elements, texts and comments.
const MOST_NODES: u32 = 1 << 20;
/// Elements inside each other.
const MOST_DEPTH: usize = 256;
/// Attributes of an element.
const MOST_ATTRIBUTES: usize = 128;
/// `CDATA` sections, which are joined one by one.
const MOST_CDATA: usize = 64;
/// Namespaces in scope.
const MOST_NAMESPACES: usize = 64;

/// Parses a document, or says in a clause what is wrong with it.
///
/// What the document says of its own encoding is not believed: it arrives as text.
pub(crate) fn tree(text: &str) -> Result<Document<'_>, String> {
    let text = text.trim_start_matches(['\u{feff}', '\0']).trim();
    check(text.as_bytes())?;
    let options = ParsingOptions { allow_dtd: false, nodes_limit: MOST_NODES, ..ParsingOptions::default() };
    Document::parse_with_options(text, options).map_err(|error| error.to_string())
}

/// Parses a document that a file holds; `what` names it in messages.
///
/// # Errors
/// [`Error::Format`] for one that is no XML, or too involved to be one that a microscope wrote.
pub(super) fn parse<'a>(path: &Path, what: &str, text: &'a str) -> Result<Document<'a>> {
    // The parser quotes names out of the file, which may hold line breaks.
    tree(text).map_err(|error| Error::format(path, format!("the XML of {what}: {}", error.replace('\n', " "))))
}

/// The bytes of a description as text: UTF-8, or UTF-16 that says so by its first two bytes.
pub(super) fn decode(bytes: &[u8]) -> String {
    let pairs = |read: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes[2..].chunks_exact(2).map(|pair| read([pair[0], pair[1]])).collect();
        String::from_utf16_lossy(units.split(|&unit| unit == 0).next().unwrap_or_default())
    };
    match bytes {
        [0xff, 0xfe, ..] => pairs(u16::from_le_bytes),
        [0xfe, 0xff, ..] => pairs(u16::from_be_bytes),
        _ => String::from_utf8_lossy(bytes.split(|&byte| byte == 0).next().unwrap_or_default()).into_owned(),
    }
}

/// The children of an element that have a name, whatever its namespace.
pub(super) fn children<'a, 'input>(
    node: Node<'a, 'input>,
    name: &'static str,
) -> impl Iterator<Item = Node<'a, 'input>> + use<'a, 'input> {
    node.children().filter(move |child| child.is_element() && child.tag_name().name() == name)
}

/// The first of these.
pub(super) fn child<'a, 'input>(node: Node<'a, 'input>, name: &'static str) -> Option<Node<'a, 'input>> {
    children(node, name).next()
}

/// The text of an element without the space around it, if there is any.
pub(super) fn content(node: Node<'_, '_>) -> Option<String> {
    let text: String = node.children().filter(Node::is_text).filter_map(|text| text.text()).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
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

/// Goes over the text once and counts. What is no XML is for the parser to find out.
fn check(text: &[u8]) -> Result<(), String> {
    if text.len() as u64 > MOST_BYTES {
        return Err(format!("{} bytes are more than {MOST_BYTES}, which is the limit", text.len()));
    }
    let sections = text.windows(9).filter(|window| window == b"<![CDATA[").count();
    if sections > MOST_CDATA {
        return Err(format!("{sections} CDATA sections are more than {MOST_CDATA}, which is the limit"));
    }
    // Namespaces in scope, for each element that is open.
    let mut open = vec![0_usize];
    let mut rest = text;
    while let Some(at) = rest.iter().position(|&byte| byte == b'<') {
        rest = &rest[at..];
        let skipped = [("<!--", "-->"), ("<![CDATA[", "]]>"), ("<?", "?>")];
        if let Some((_, end)) = skipped.iter().find(|(start, _)| rest.starts_with(start.as_bytes())) {
            let Some(at) = rest.windows(end.len()).position(|window| window == end.as_bytes()) else { break };
            rest = &rest[at + end.len()..];
            continue;
        }
        let tag = Tag::of(rest);
        rest = &rest[tag.bytes..];
        if tag.closes {
            if open.len() > 1 {
                open.pop();
            }
            continue;
        }
        if tag.attributes > MOST_ATTRIBUTES {
            return Err(format!("an element has more than {MOST_ATTRIBUTES} attributes, which is the limit"));
        }
        let namespaces = open.last().copied().unwrap_or_default() + tag.namespaces;
        if namespaces > MOST_NAMESPACES {
            return Err(format!("more than {MOST_NAMESPACES} namespaces are in scope, which is the limit"));
        }
        if !tag.is_empty {
            if open.len() > MOST_DEPTH {
                return Err(format!("elements lie more than {MOST_DEPTH} deep, which is the limit"));
            }
            open.push(namespaces);
        }
    }
    Ok(())
}

/// What a tag is made of.
struct Tag {
    bytes: usize,
    attributes: usize,
    namespaces: usize,
    closes: bool,
    is_empty: bool,
}

impl Tag {
    /// The tag at the start of `text`, which is `<`.
    fn of(text: &[u8]) -> Self {
        let (mut attributes, mut namespaces, mut quote) = (0, 0, None);
        let mut end = text.len();
        for (at, &byte) in text.iter().enumerate() {
            match (quote, byte) {
                (Some(open), _) => quote = (byte != open).then_some(open),
                (None, b'"' | b'\'') => {
                    quote = Some(byte);
                    attributes += 1;
                }
                (None, b'x') if text[at..].starts_with(b"xmlns") => namespaces += 1,
                (None, b'>') => {
                    end = at + 1;
                    break;
                }
                _ => {}
            }
        }
        let tag = &text[..end];
        let (closes, is_empty) = (tag.starts_with(b"</"), tag.ends_with(b"/>"));
        Self { bytes: end, attributes, namespaces, closes, is_empty }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_that_cost_too_much_are_refused() {
        let refused = |text: &str, words: &str| {
            let error = tree(text).unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        let many = |n: usize, of: fn(usize) -> String| (0..n).map(of).collect::<String>();
        refused(&format!("<a {}/>", many(100_000, |i| format!("a{i}='>' "))), "128 attributes");
        refused(&format!("<a {}/>", many(100, |i| format!("xmlns:a{i}='b' "))), "64 namespaces");
        refused(&many(100, |i| format!("<a xmlns:a{i}='b'>")), "64 namespaces");
        refused(&many(100_000, |_| "<a>".into()), "256 deep");
        refused(&format!("<a>{}</a>", many(1 << 20, |_| "<b/>".into())), "nodes limit");
        refused("<!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", "DTD");
        refused("<a>", "");
        refused("", "");
    }

    #[test]
    fn documents_that_microscopes_write_are_read() {
        let text = "\u{feff}<?xml version=\"1.0\" encoding=\"utf-16\"?>\r\n<!-- <a> ' --><a b='/>' c='\"'>\
                    <![CDATA[<x>]]><b xmlns=''> d </b></a>\0";
        let document = tree(text.trim_end_matches('\0')).unwrap();
        let root = document.root_element();
        assert_eq!(root.attribute("b"), Some("/>"));
        assert_eq!(child(root, "b").and_then(content).as_deref(), Some("d"));
        // Many elements that declare a namespace, as older Bio-Formats wrote them, are no matter of depth.
        let siblings: String = (0..5000).map(|_| "<b xmlns=\"\"><c/></b>").collect();
        assert!(tree(&format!("<a>{siblings}</a>")).is_ok());
    }

    #[test]
    fn utf_16_says_so() {
        let wide = |read: fn(u16) -> [u8; 2], mark: [u8; 2]| {
            let bytes: Vec<u8> = "<a>µ</a>\0".encode_utf16().flat_map(read).collect();
            decode(&[&mark[..], &bytes].concat())
        };
        assert_eq!(wide(u16::to_le_bytes, [0xff, 0xfe]), "<a>µ</a>");
        assert_eq!(wide(u16::to_be_bytes, [0xfe, 0xff]), "<a>µ</a>");
        assert_eq!(decode("<a>µ</a>\0rest".as_bytes()), "<a>µ</a>");
        assert_eq!(decode(b"\xff"), "\u{fffd}");
    }
}
