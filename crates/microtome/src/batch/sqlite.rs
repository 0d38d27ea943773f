//! A database of results, written as a whole.
//!
//! Tables that are written once, in the order of their rows, and never changed, take a small part of SQLite's file format (version 3, which
//! is documented and stable: <https://www.sqlite.org/fileformat2.html>): leaves and inner pages of tables, and pages for what is too long
//! for a leaf. There are no indexes, no free pages and no journal. That is a page of code; SQLite itself is 9 MB of C.

/// A value of a row.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Integer(i64),
    Real(f64),
    Text(String),
}

impl From<Option<String>> for Value {
    fn from(text: Option<String>) -> Self {
        text.map_or(Self::Null, Self::Text)
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.into())
    }
}

impl From<Option<u64>> for Value {
    fn from(number: Option<u64>) -> Self {
        number.and_then(|n| i64::try_from(n).ok()).map_or(Self::Null, Self::Integer)
    }
}

impl From<Option<f64>> for Value {
    fn from(number: Option<f64>) -> Self {
        // SQLite has no NaN.
        number.filter(|n| n.is_finite()).map_or(Self::Null, Self::Real)
    }
}

/// A table: names and types of its columns, and its rows in their order.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) name: &'static str,
    pub(super) columns: Vec<(&'static str, &'static str)>,
    pub(super) rows: Vec<Vec<Value>>,
}

const PAGE: usize = 4096;
/// The file's own header, on the first page.
const HEADER: usize = 100;
/// Bytes of a row that stay in its leaf at most, and at least where it is longer (sections 1.6 and 2.3 of the format).
const MOST_LOCAL: usize = PAGE - 35;
const LEAST_LOCAL: usize = (PAGE - 12) * 32 / 255 - 23;
/// Bytes of a page of what is too long: the first four lead to the next one.
const OVERFLOW: usize = PAGE - 4;
/// The version of SQLite that is said to have written the file: 3.40.
const VERSION: u32 = 3_040_000;

/// The bytes of a database of these tables.
///
/// Memory: those bytes.
pub(super) fn database(tables: &[Table]) -> Vec<u8> {
    // The first page, of the tables' names, is written last.
    let mut pages = vec![vec![0; PAGE]];
    let mut schema = Vec::new();
    for table in tables {
        let root = write_table(&table.rows, &mut pages);
        let columns: Vec<String> = table.columns.iter().map(|(name, kind)| format!("\"{name}\" {kind}")).collect();
        let sql = format!("CREATE TABLE \"{}\" ({})", table.name, columns.join(", "));
        schema.push(vec![
            Value::from("table"),
            table.name.into(),
            table.name.into(),
            Value::Integer(i64::from(root)),
            Value::Text(sql),
        ]);
    }
    let mut first = Leaf::new(HEADER);
    for (row, number) in schema.iter().zip(1..) {
        let cell = cell(row, number, &mut pages);
        assert!(first.take(&cell), "the tables of this program are described on a page");
    }
    pages[0] = first.finish();
    let count = pages.len() as u32;
    let head = &mut pages[0][..HEADER];
    head[..16].copy_from_slice(b"SQLite format 3\0");
    head[16..18].copy_from_slice(&(PAGE as u16).to_be_bytes());
    // Journal of the old kind; no bytes kept free; fractions of a page that are fixed.
    head[18..24].copy_from_slice(&[1, 1, 0, 64, 32, 32]);
    for (at, number) in [(24, 1), (28, count), (40, 1), (44, 4), (56, 1), (92, 1), (96, VERSION)] {
        head[at..at + 4].copy_from_slice(&u32::to_be_bytes(number));
    }
    pages.concat()
}

/// Writes the pages of a table, and gives the number of its root, from 1 on.
fn write_table(rows: &[Vec<Value>], pages: &mut Vec<Vec<u8>>) -> u32 {
    // Of each finished page its number, and the largest row under it.
    let mut level: Vec<(u32, i64)> = Vec::new();
    let mut leaf = Leaf::new(0);
    let mut last = 0;
    for (row, number) in rows.iter().zip(1..) {
        let cell = cell(row, number, pages);
        if !leaf.take(&cell) {
            level.push((add(pages, std::mem::replace(&mut leaf, Leaf::new(0)).finish()), last));
            let fits = leaf.take(&cell);
            debug_assert!(fits, "what stays of a row fits into an empty leaf");
        }
        last = number;
    }
    level.push((add(pages, leaf.finish()), last));
    while level.len() > 1 {
        // As even as can be, so that none has a single page under it.
        let groups = level.len().div_ceil(FAN);
        let (each, more) = (level.len() / groups, level.len() % groups);
        let mut rest = level.as_slice();
        let mut above = Vec::new();
        for group in 0..groups {
            let (under, after) = rest.split_at(each + usize::from(group < more));
            rest = after;
            above.push((add(pages, inner(under)), under[under.len() - 1].1));
        }
        level = above;
    }
    level[0].0
}

/// Pages under an inner page: a cell has a pointer of 2 bytes, a number of 4 and a key of 9 at most.
const FAN: usize = (PAGE - 12) / 15;

fn add(pages: &mut Vec<Vec<u8>>, page: Vec<u8>) -> u32 {
    pages.push(page);
    pages.len() as u32
}

/// An inner page over others: all but the last are cells, with the largest row under each.
fn inner(under: &[(u32, i64)]) -> Vec<u8> {
    let mut page = vec![0; PAGE];
    let (right, cells) = (under[under.len() - 1].0, &under[..under.len() - 1]);
    let mut end = PAGE;
    for (i, (number, key)) in cells.iter().enumerate() {
        let mut cell = number.to_be_bytes().to_vec();
        varint(*key as u64, &mut cell);
        end -= cell.len();
        page[end..end + cell.len()].copy_from_slice(&cell);
        page[12 + 2 * i..14 + 2 * i].copy_from_slice(&(end as u16).to_be_bytes());
    }
    page[0] = 0x05;
    page[3..5].copy_from_slice(&(cells.len() as u16).to_be_bytes());
    page[5..7].copy_from_slice(&(end as u16).to_be_bytes());
    page[8..12].copy_from_slice(&right.to_be_bytes());
    page
}

/// A leaf of a table in the making.
struct Leaf {
    page: Vec<u8>,
    /// Where its header is.
    at: usize,
    cells: usize,
    end: usize,
}

impl Leaf {
    fn new(at: usize) -> Self {
        Self { page: vec![0; PAGE], at, cells: 0, end: PAGE }
    }

    /// Takes a cell if there is room.
    fn take(&mut self, cell: &[u8]) -> bool {
        let pointer = self.at + 8 + 2 * self.cells;
        if pointer + 2 + cell.len() > self.end {
            return false;
        }
        self.end -= cell.len();
        self.page[self.end..self.end + cell.len()].copy_from_slice(cell);
        self.page[pointer..pointer + 2].copy_from_slice(&(self.end as u16).to_be_bytes());
        self.cells += 1;
        true
    }

    fn finish(mut self) -> Vec<u8> {
        let head = &mut self.page[self.at..];
        head[0] = 0x0d;
        head[3..5].copy_from_slice(&(self.cells as u16).to_be_bytes());
        head[5..7].copy_from_slice(&(self.end as u16).to_be_bytes());
        self.page
    }
}

/// A row as a cell of a leaf. What does not fit goes to pages of its own.
fn cell(row: &[Value], number: i64, pages: &mut Vec<Vec<u8>>) -> Vec<u8> {
    let payload = record(row);
    let mut cell = Vec::new();
    varint(payload.len() as u64, &mut cell);
    varint(number as u64, &mut cell);
    let local = match payload.len() {
        n if n <= MOST_LOCAL => n,
        n => match LEAST_LOCAL + (n - LEAST_LOCAL) % OVERFLOW {
            k if k <= MOST_LOCAL => k,
            _ => LEAST_LOCAL,
        },
    };
    let (kept, rest) = payload.split_at(local);
    cell.extend(kept);
    if !rest.is_empty() {
        cell.extend((pages.len() as u32 + 1).to_be_bytes());
        let mut parts = rest.chunks(OVERFLOW).peekable();
        while let Some(part) = parts.next() {
            let next = if parts.peek().is_some() { pages.len() as u32 + 2 } else { 0 };
            let mut page = next.to_be_bytes().to_vec();
            page.extend(part);
            page.resize(PAGE, 0);
            pages.push(page);
        }
    }
    cell
}

/// A row: the types of its values, then the values.
fn record(row: &[Value]) -> Vec<u8> {
    let (mut types, mut body) = (Vec::new(), Vec::new());
    for value in row {
        match value {
            Value::Null => varint(0, &mut types),
            // Numbers of 8 bytes throughout: rows are few.
            Value::Integer(number) => {
                varint(6, &mut types);
                body.extend(number.to_be_bytes());
            }
            Value::Real(number) => {
                varint(7, &mut types);
                body.extend(number.to_be_bytes());
            }
            Value::Text(text) => {
                varint(13 + 2 * text.len() as u64, &mut types);
                body.extend(text.as_bytes());
            }
        }
    }
    let mut record = Vec::new();
    // The length counts itself: a byte, or two where that makes it 128 and more.
    let length = types.len() + if types.len() < 127 { 1 } else { 2 };
    varint(length as u64, &mut record);
    record.extend(types);
    record.extend(body);
    record
}

/// A number in 7 bits a byte, the highest first; a ninth byte has 8.
fn varint(number: u64, out: &mut Vec<u8>) {
    if number >> 56 != 0 {
        let high = number >> 8;
        out.extend((0..8).rev().map(|i| (high >> (7 * i)) as u8 | 0x80));
        out.push(number as u8);
        return;
    }
    let bytes = (1..=8).find(|n| number >> (7 * n) == 0).unwrap_or(8);
    out.extend((0..bytes).rev().map(|i| (number >> (7 * i)) as u8 & 0x7f | if i == 0 { 0 } else { 0x80 }));
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn numbers_have_the_bytes_of_the_format() {
        let of = |number| {
            let mut out = Vec::new();
            varint(number, &mut out);
            out
        };
        assert_eq!(of(0), [0]);
        assert_eq!(of(127), [0x7f]);
        assert_eq!(of(128), [0x81, 0x00]);
        assert_eq!(of(16_383), [0xff, 0x7f]);
        assert_eq!(of((1 << 56) - 1), [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]);
        assert_eq!(of(u64::MAX), [0xff; 9]);
        // 48 bits above the last eight: the highest is the seventh of its byte.
        assert_eq!(of(1 << 56), [0x80, 0xc0, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x00]);
    }

    /// SQLite itself, in Python, checks every page and reads every value back.
    #[test]
    fn sqlite_reads_what_is_written() {
        let Some(python) = std::env::var_os("MICROTOME_PYTHON") else {
            microtome_testkit::skip("MICROTOME_PYTHON names no Python, whose sqlite3 would read the database");
            return;
        };
        let place = tempfile::tempdir().unwrap();
        // Rows about as long as where a leaf, and what stays in it, ends; and as many as take three levels of pages.
        let lengths = [0, 1, 110, 127, 128, 4000, 4030, 4050, 4061, 4062, 4100, 4580, 8150, 8200, 20_000];
        let long = lengths.map(|n| vec![Value::Text("x".repeat(n)), Value::Integer(n as i64), Value::Null]);
        let many = (0..70_000_i64)
            .map(|i| vec![Value::Text(format!("é{i}")), Value::Integer(-i), Value::Real(0.1 * i as f64)]);
        for (name, rows) in [("none", Vec::new()), ("long", long.to_vec()), ("many", many.collect())] {
            let path = place.path().join(name);
            let columns = vec![("a", "TEXT"), ("b", "INTEGER"), ("c", "REAL")];
            let other = Table { name: "other", columns: vec![("id", "TEXT")], rows: vec![vec!["y".into()]] };
            let sum: i64 = rows.iter().map(|row| if let Value::Integer(n) = row[1] { n } else { 0 }).sum();
            let characters: usize =
                rows.iter().map(|row| if let Value::Text(t) = &row[0] { t.chars().count() } else { 0 }).sum();
            let expected = format!("ok {} {sum} {characters} y\n", rows.len());
            std::fs::write(&path, database(&[Table { name: "rows", columns, rows }, other])).unwrap();
            let script = "import sqlite3, sys\n\
                          d = sqlite3.connect(sys.argv[1])\n\
                          one = lambda sql: d.execute(sql).fetchone()\n\
                          a = one('select count(*), coalesce(sum(b), 0), coalesce(sum(length(a)), 0) from rows')\n\
                          print(one('pragma integrity_check')[0], *a, one('select id from other')[0])\n";
            let output = Command::new(&python).args(["-c", script]).arg(&path).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said, expected, "{name}: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
}
