//! Several images in one store, as bioformats2raw lays them out.
//!
//! The root says `bioformats2raw.layout: 3`. The group `OME` lists the images (`series`) and holds `METADATA.ome.xml`, whose images come in
//! the same order and have names; without a list the images are the groups `0`, `1`, ...
//! Specification: <https://ngff.openmicroscopy.org/0.5/#bf2raw>.

use serde_json::Value;

use super::entries::{Entries, is_inside};
use super::found::METADATA_LIMIT;
use super::node::{Node, take};
use crate::slide::xml;
use crate::{Error, Result};

/// More images than this no slide has.
const MAX_SERIES: usize = 1024;

/// The keys of the images; at least one.
pub(super) fn series(entries: &dyn Entries) -> Result<Vec<String>> {
    if let Some(mut node) = Node::read(entries, "OME")?
        && let Value::Array(list) = take(&mut node.ome(), "series")
    {
        let listed: Option<Vec<String>> = list.iter().map(|name| name.as_str().map(Into::into)).collect();
        return match listed {
            Some(listed) if (1..=MAX_SERIES).contains(&listed.len()) && listed.iter().all(|key| is_inside(key)) => {
                Ok(listed)
            }
            Some(listed) if listed.len() > MAX_SERIES => {
                let n = listed.len();
                Err(Error::limits(&node.path, format!("{n} images are more than the {MAX_SERIES} that are allowed")))
            }
            _ => Err(Error::format(&node.path, "the list of series is no list of folders in this store")),
        };
    }
    let mut found = vec!["0".to_owned()];
    while found.len() < MAX_SERIES {
        let next = found.len().to_string();
        if Node::read(entries, &next)?.is_none() {
            break;
        }
        found.push(next);
    }
    Ok(found)
}

/// The names of so many images, where they have any.
pub(super) fn names(entries: &dyn Entries, count: usize) -> Result<Vec<Option<String>>> {
    let mut names = match entries.get("OME/METADATA.ome.xml", METADATA_LIMIT)? {
        Some(xml) => xml_names(&String::from_utf8_lossy(&xml)),
        None => Vec::new(),
    };
    names.resize(count, None);
    Ok(names)
}

/// The names of the images of an OME-XML document. They are for people; of a document that cannot be read there are none.
pub(super) fn xml_names(xml: &str) -> Vec<Option<String>> {
    let Ok(document) = xml::tree(xml) else { return Vec::new() };
    let images = document.root_element().children().filter(|node| node.tag_name().name() == "Image");
    images.map(|image| image.attribute("Name").map(Into::into)).take(MAX_SERIES).collect()
}

/// The name under which an image travels along, by the custom of Bio-Formats: `label image`, `macro image`, or the word alone.
pub(super) fn role(name: &str) -> Option<&'static str> {
    let name = name.trim().to_lowercase();
    let word = name.strip_suffix(" image").unwrap_or(&name);
    ["label", "macro", "thumbnail", "overview"].into_iter().find(|&role| role == word)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_roles() {
        let xml = r#"<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06"><Image ID="Image:0" Name="a.svs"><Pixels/></Image>
            <Image ID="Image:1"/><Image ID="Image:2" Name="Label image"/></OME>"#;
        assert_eq!(xml_names(xml), [Some("a.svs".into()), None, Some("Label image".into())]);
        assert_eq!(xml_names("<OME>"), Vec::<Option<String>>::new());
        assert_eq!(role("Label image"), Some("label"));
        assert_eq!(role("macro"), Some("macro"));
        assert_eq!(role("labelled cells"), None);
    }
}
