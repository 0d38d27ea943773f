//! A document of HTML, made of parts that escape whatever they are given: nothing else writes tags.

use std::fmt::Write;

use microtome_io::{Class, base64};
use sha2::{Digest, Sha256};

/// Light and plain, on paper too. Colours of the legend are printed, and nothing is torn apart between pages.
const STYLE: &str = "
body { font: 15px/1.45 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 62rem; margin: 2rem auto; padding: 0 1.5rem; }
h1 { font-size: 1.6rem; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; break-after: avoid; }
p { margin: .3rem 0; color: #444; }
table { border-collapse: collapse; width: 100%; break-inside: avoid; }
th, td { text-align: left; vertical-align: top; padding: .22rem 1rem .22rem 0; border-bottom: 1px solid #e4e4e4; overflow-wrap: anywhere; }
th { font-weight: 600; }
th[scope=row] { font-weight: 400; color: #555; width: 13rem; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.2rem 0; break-inside: avoid; }
img { display: block; max-width: 100%; height: auto; border: 1px solid #ddd; }
figcaption { margin-top: .35rem; color: #444; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; border: 1px solid #777; print-color-adjust: exact; -webkit-print-color-adjust: exact; }
.key { display: inline-block; margin-right: 1.2em; }
.wide { max-width: none; }
.sortable { width: auto; }
.sortable th button { all: unset; cursor: pointer; }
.sortable th button:focus-visible { outline: 2px solid; }
.sortable th[aria-sort=ascending] button::after { content: ' \\25B2'; }
.sortable th[aria-sort=descending] button::after { content: ' \\25BC'; }
.sortable img { max-width: 200px; max-height: 120px; }
.sortable td { white-space: nowrap; }
.sortable td.text { white-space: normal; min-width: 6rem; max-width: 24rem; }
@media print { body { margin: 0; padding: 0; max-width: none; font-size: 11px; } img { max-height: 11cm; width: auto; } }
";

/// Sorts a table by the column whose title is pressed, and turns it round when it is pressed again: numbers as numbers, and what is empty last.
const SORT: &str = "
for (const table of document.querySelectorAll('table.sortable')) {
  const titles = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.number === undefined ? cell.textContent : cell.dataset.number === '' ? '' : Number(cell.dataset.number);
  };
  const compare = (a, b) => typeof a === 'number' && typeof b === 'number' ? a - b : String(a).localeCompare(String(b), undefined, { numeric: true });
  titles.forEach((title, column) => title.querySelector('button').addEventListener('click', () => {
    const down = title.getAttribute('aria-sort') === 'ascending';
    titles.forEach(other => other.removeAttribute('aria-sort'));
    title.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const rows = [...body.rows].map(row => [key(row, column), row]);
    rows.sort(([a], [b]) => a === '' || b === '' ? (a === '') - (b === '') : (down ? -1 : 1) * compare(a, b));
    body.append(...rows.map(([, row]) => row));
  }));
}
";

/// A picture as a browser takes it.
#[derive(Debug)]
pub(super) struct Jpeg {
    pub(super) bytes: Vec<u8>,
    pub(super) size: microtome_io::Size,
}

/// A cell of a table that can be sorted.
#[derive(Debug)]
pub(crate) enum Sortable {
    /// Text.
    Text(String),
    /// A number: what it is, and how it is written.
    Number(Option<f64>, String),
    /// Text that leads to a file beside the document: its path, from folder to folder.
    Link(String, Vec<String>),
    /// A JPEG, and what it shows.
    Picture(Option<Vec<u8>>, String),
}

/// A cell of a table.
#[derive(Debug)]
pub(super) enum Cell<'a> {
    /// Text, on the left.
    Text(String),
    /// A number with or without its unit, on the right.
    Number(String),
    /// A class with its colour.
    Class(&'a Class),
}

/// The document in the making.
#[derive(Debug)]
pub(crate) struct Html(String);

impl Html {
    /// A document that may load nothing, from wherever, and run nothing.
    pub(super) fn new(title: &str) -> Self {
        Self::begin(title, "", "")
    }

    /// A document that may load nothing, and run nothing but what sorts its tables: the browser knows it by its digest, so that nothing that is
    /// given could ever run.
    pub(crate) fn with_sorting(title: &str) -> Self {
        let digest = base64::encode(&Sha256::digest(SORT.as_bytes()));
        Self::begin(title, &format!("; script-src 'sha256-{digest}'"), " class=\"wide\"")
    }

    fn begin(title: &str, policy: &str, body: &str) -> Self {
        let title = escaped(title);
        Self(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; img-src data:; style-src 'unsafe-inline'{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body{body}>\n<h1>{title}</h1>\n"
        ))
    }

    pub(super) fn finish(mut self) -> String {
        self.0.push_str("</body>\n</html>\n");
        self.0
    }

    /// The end of a document [with sorting](Self::with_sorting).
    pub(crate) fn finish_with_sorting(mut self) -> String {
        self.write(format_args!("<script>{SORT}</script>\n"));
        self.finish()
    }

    /// A table that can be sorted by any column, in a document [with sorting](Self::with_sorting).
    pub(crate) fn sortable(&mut self, titles: &[String], rows: &[Vec<Sortable>]) {
        self.0.push_str("<table class=\"sortable\">\n<thead><tr>");
        for title in titles {
            self.write(format_args!("<th scope=\"col\"><button type=\"button\">{}</button></th>", escaped(title)));
        }
        self.0.push_str("</tr></thead>\n<tbody>\n");
        for row in rows {
            self.0.push_str("<tr>");
            for cell in row {
                match cell {
                    Sortable::Text(text) => self.write(format_args!("<td class=\"text\">{}</td>", escaped(text))),
                    Sortable::Number(number, text) => {
                        let number = number.map_or_else(String::new, |number| number.to_string());
                        let text = escaped(text);
                        self.write(format_args!("<td class=\"number\" data-number=\"{number}\">{text}</td>"));
                    }
                    Sortable::Link(text, path) => {
                        let (text, path) =
                            (escaped(text), path.iter().map(|part| in_address(part)).collect::<Vec<_>>());
                        self.write(format_args!("<td class=\"text\"><a href=\"./{}\">{text}</a></td>", path.join("/")));
                    }
                    Sortable::Picture(None, _) => self.0.push_str("<td></td>"),
                    Sortable::Picture(Some(jpeg), shows) => self.write(format_args!(
                        "<td><img alt=\"{}\" src=\"data:image/jpeg;base64,{}\"></td>",
                        escaped(shows),
                        base64::encode(jpeg)
                    )),
                }
            }
            self.0.push_str("</tr>\n");
        }
        self.0.push_str("</tbody>\n</table>\n");
    }

    pub(crate) fn heading(&mut self, text: &str) {
        self.write(format_args!("<h2>{}</h2>\n", escaped(text)));
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        self.write(format_args!("<p>{}</p>\n", escaped(text)));
    }

    /// A picture with what it shows, and a legend of the classes.
    pub(super) fn figure(&mut self, picture: &Jpeg, caption: &str, legend: &[&Class]) {
        let caption = escaped(caption);
        let (width, height) = (picture.size.width, picture.size.height);
        self.write(format_args!(
            "<figure><img width=\"{width}\" height=\"{height}\" alt=\"{caption}\" src=\"data:image/jpeg;base64,{}\">\
             <figcaption>{caption}",
            base64::encode(&picture.bytes)
        ));
        if !legend.is_empty() {
            self.0.push_str("<br>");
        }
        for class in legend {
            self.0.push_str("<span class=\"key\">");
            self.class(class);
            self.0.push_str("</span> ");
        }
        self.0.push_str("</figcaption></figure>\n");
    }

    /// Names and what they stand for.
    pub(super) fn facts(&mut self, facts: &[(&str, String)]) {
        self.0.push_str("<table>\n");
        for (name, value) in facts {
            self.write(format_args!("<tr><th scope=\"row\">{}</th><td>{}</td></tr>\n", escaped(name), escaped(value)));
        }
        self.0.push_str("</table>\n");
    }

    /// A table whose columns have titles. Where the first row has a number, the column's title is on the right, too.
    pub(super) fn table(&mut self, titles: &[&str], rows: &[Vec<Cell<'_>>]) {
        self.0.push_str("<table>\n<tr>");
        for (column, title) in titles.iter().enumerate() {
            let number = rows.first().is_some_and(|row| matches!(row.get(column), Some(Cell::Number(_))));
            let class = if number { " class=\"number\"" } else { "" };
            self.write(format_args!("<th{class}>{}</th>", escaped(title)));
        }
        self.0.push_str("</tr>\n");
        for row in rows {
            self.0.push_str("<tr>");
            for cell in row {
                match cell {
                    Cell::Text(text) => self.write(format_args!("<td>{}</td>", escaped(text))),
                    Cell::Number(text) => self.write(format_args!("<td class=\"number\">{}</td>", escaped(text))),
                    Cell::Class(class) => {
                        self.0.push_str("<td>");
                        self.class(class);
                        self.0.push_str("</td>");
                    }
                }
            }
            self.0.push_str("</tr>\n");
        }
        self.0.push_str("</table>\n");
    }

    fn class(&mut self, class: &Class) {
        let [r, g, b] = class.color;
        let name = escaped(&class.name);
        self.write(format_args!("<span class=\"swatch\" style=\"background:#{r:02x}{g:02x}{b:02x}\"></span>{name}"));
    }

    fn write(&mut self, text: std::fmt::Arguments<'_>) {
        let Ok(()) = self.0.write_fmt(text) else { unreachable!("a text takes whatever is written to it") };
    }
}

/// A part of a path as a part of an address (RFC 3986): all but letters, digits and `-._~` by their bytes.
fn in_address(part: &str) -> String {
    let mut text = String::new();
    for byte in part.bytes() {
        match byte {
            b'-' | b'.' | b'_' | b'~' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' => text.push(byte.into()),
            other => {
                let Ok(()) = write!(text, "%{other:02X}") else {
                    unreachable!("a text takes whatever is written to it")
                };
            }
        }
    }
    text
}

/// Text that is text wherever it stands, in quotes too. Control characters, which HTML does not allow, become U+FFFD.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\n' | '\t' => safe.push(c),
            c if c.is_control() => safe.push(char::REPLACEMENT_CHARACTER),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_stays_text_wherever_it_stands() {
        let hostile = "</title><script>alert('1')</script>\" onload=\"x\u{0}&amp;";
        let class = Class::with_default_color(1, hostile);
        let picture = Jpeg { bytes: vec![1, 2, 3], size: microtome_io::Size::new(4, 5) };
        let mut page = Html::new(hostile);
        page.heading(hostile);
        page.paragraph(hostile);
        page.figure(&picture, hostile, &[&class]);
        page.facts(&[(hostile, hostile.into())]);
        page.table(&[hostile], &[vec![Cell::Text(hostile.into()), Cell::Number(hostile.into()), Cell::Class(&class)]]);
        let page = page.finish();
        let safe =
            "&lt;/title&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot; onload=&quot;x\u{fffd}&amp;amp;";
        assert_eq!(page.matches(safe).count(), 13);
        assert!(!page.contains("<script") && !page.contains("\" onload") && !page.contains('\0'));
        assert!(page.contains("src=\"data:image/jpeg;base64,AQID\""));
    }

    #[test]
    fn a_table_that_sorts_runs_its_own_script_and_no_other() {
        let hostile = "</td><script>alert(1)</script>\" onclick=\"x";
        let mut page = Html::with_sorting(hostile);
        let row = vec![
            Sortable::Text(hostile.into()),
            Sortable::Number(Some(1.5), hostile.into()),
            Sortable::Number(None, String::new()),
            Sortable::Link(hostile.into(), vec!["a b".into(), "ü\"".into()]),
            Sortable::Picture(Some(vec![1, 2, 3]), hostile.into()),
        ];
        page.sortable(&[hostile.to_owned()], &[row]);
        let page = page.finish_with_sorting();
        assert_eq!(page.matches("<script").count(), 1);
        assert!(!page.contains("\" onclick") && page.contains("href=\"./a%20b/%C3%BC%22\""), "{page}");
        assert!(page.contains("data-number=\"1.5\"") && page.contains("data-number=\"\""));
        // The digest is that of what stands between the tags, as browsers take it (CSP 3, section 6.7.3.3).
        let script = page.split("<script>").nth(1).unwrap().split("</script>").next().unwrap();
        let digest = base64::encode(&Sha256::digest(script.as_bytes()));
        assert!(page.contains(&format!("script-src 'sha256-{digest}'")));
        assert!(!script.contains("</") && !script.contains("<!--"));
    }
}
