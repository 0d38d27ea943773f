//! The pickle machine, as data: it builds values and never calls anything.
//!
//! Values live in one list and refer to each other by index, so that what Python shares is shared here, cycles are harmless,
//! and memory stays proportional to the pickle. Objects other than plain data stay as "callable and arguments"; a callable that is
//! not on the allow-list is refused by name, although it could not do any harm: such a file is not what it claims to be.
//! Opcodes: CPython's `Lib/pickletools.py`, protocols 2 to 5 without buffers that lie outside of the pickle.

use std::collections::HashMap;

use super::allowed::{is_allowed, is_of_network};

/// More than the names, logs and plans of the largest checkpoints need: 4000 epochs with the scores of 50 classes are 1.2 million.
/// With their texts, lists and references these are less than 256 MiB; a pickle of n bytes holds no more than n of them.
const MAX_VALUES: usize = 2_000_000;
/// Values and repeated references to them, which take room in lists.
const MAX_REFERENCES: usize = 8_000_000;

/// Index of a value.
pub(crate) type Id = u32;

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(String),
    /// Bytes, of which nothing here needs the content.
    Bytes,
    /// A tuple, a list or a set.
    Sequence(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Box<Global>),
    Call(Id, Id),
    /// A reference to something outside the pickle: a tensor's storage.
    Persistent(Id),
}

/// A class or a function, by its names.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Global {
    pub(crate) module: String,
    pub(crate) name: String,
}

#[derive(Debug)]
pub(crate) struct Pickle {
    values: Vec<Value>,
    root: Id,
}

impl Pickle {
    /// Reads a pickle.
    ///
    /// # Errors
    /// A clause saying what is wrong or not supported.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut machine = Machine { input: bytes, ..Machine::default() };
        let root = machine.run().map_err(|message| match &machine.refused {
            Some(class) if is_of_network(&class.module) || contains(bytes, b"torch.nn.modules.") => format!(
                "it holds a network or a part of one as Python objects ({}.{}), which would need their code; in Python, \
                 torch.save(model.state_dict(), \"weights.pth\") saves its weights alone",
                class.module, class.name
            ),
            _ => message,
        })?;
        Ok(Self { values: machine.values, root })
    }

    pub(crate) fn root(&self) -> Id {
        self.root
    }

    pub(crate) fn value(&self, id: Id) -> &Value {
        &self.values[id as usize]
    }

    /// What a dictionary holds under a text; the last entry counts.
    pub(crate) fn entry(&self, dict: Id, key: &str) -> Option<Id> {
        let Value::Dict(entries) = self.value(dict) else { return None };
        let found = entries.iter().rev().find(|(k, _)| matches!(self.value(*k), Value::Text(text) if text == key));
        found.map(|(_, value)| *value)
    }

    /// Module, name and arguments of an object that Python would make by a call.
    pub(crate) fn call(&self, id: Id) -> Option<(&str, &str, &[Id])> {
        let Value::Call(callable, arguments) = self.value(id) else { return None };
        let Value::Global(global) = self.value(*callable) else { return None };
        let Value::Sequence(arguments) = self.value(*arguments) else { return None };
        Some((&global.module, &global.name, arguments))
    }
}

#[derive(Default)]
struct Machine<'a> {
    input: &'a [u8],
    values: Vec<Value>,
    stack: Vec<Id>,
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    /// Values put on the stack so far, again and again the same ones, too.
    references: usize,
    /// The class that has no place in a checkpoint.
    refused: Option<Global>,
}

impl<'a> Machine<'a> {
    fn run(&mut self) -> Result<Id, String> {
        loop {
            let opcode = self.bytes(1)?[0];
            match opcode {
                0x80 => drop(self.bytes(1)?), // PROTO
                0x95 => drop(self.bytes(8)?), // FRAME
                b'.' => return self.pop(),    // STOP
                b'(' => {
                    if self.marks.len() == MAX_VALUES {
                        return Err(format!("more than {MAX_VALUES} marks"));
                    }
                    self.marks.push(self.stack.len());
                }
                // POP, and BUILD, which gives an object attributes of which none is needed.
                b'0' | b'b' => drop(self.pop()?),
                b'1' => drop(self.since_mark()?), // POP_MARK
                b'2' => {
                    let top = self.top()?;
                    self.refer(top)?; // DUP
                }
                b'N' => self.push(Value::None)?,
                0x88 => self.push(Value::Bool(true))?,
                0x89 => self.push(Value::Bool(false))?,
                b'J' => {
                    let value = i32::from_le_bytes(self.array()?);
                    self.push(Value::Int(value.into()))?;
                }
                b'K' => {
                    let value = self.length(1)?;
                    self.push(Value::Int(value as i64))?;
                }
                b'M' => {
                    let value = self.length(2)?;
                    self.push(Value::Int(value as i64))?;
                }
                0x8a => {
                    let length = self.length(1)?;
                    self.long(length)?;
                }
                0x8b => {
                    let length = self.length(4)?;
                    self.long(length)?;
                }
                b'G' => {
                    let value = f64::from_be_bytes(self.array()?);
                    self.push(Value::Float(value))?;
                }
                0x8c => self.text(1)?,                                         // SHORT_BINUNICODE
                b'X' => self.text(4)?,                                         // BINUNICODE
                0x8d => self.text(8)?,                                         // BINUNICODE8
                b'C' | b'U' => self.blob(1)?,                                  // SHORT_BINBYTES, SHORT_BINSTRING
                b'B' | b'T' => self.blob(4)?,                                  // BINBYTES, BINSTRING
                0x8e | 0x96 => self.blob(8)?,                                  // BINBYTES8, BYTEARRAY8
                b')' | b']' | 0x8f => self.push(Value::Sequence(Vec::new()))?, // EMPTY_TUPLE, _LIST, _SET
                b'}' => self.push(Value::Dict(Vec::new()))?,
                b't' | b'l' | 0x91 => {
                    // TUPLE, LIST, FROZENSET
                    let items = self.since_mark()?;
                    self.push(Value::Sequence(items))?;
                }
                0x85..=0x87 => {
                    // TUPLE1 to TUPLE3
                    let at = self.stack.len().checked_sub(usize::from(opcode - 0x84)).ok_or("an empty stack")?;
                    let items = self.split(at)?;
                    self.push(Value::Sequence(items))?;
                }
                b'd' => {
                    let items = self.since_mark()?;
                    self.push(Value::Dict(Vec::new()))?;
                    self.set(&items)?;
                }
                b'a' => {
                    let item = self.pop()?;
                    self.append(&[item])?;
                }
                b'e' | 0x90 => {
                    // APPENDS, ADDITEMS
                    let items = self.since_mark()?;
                    self.append(&items)?;
                }
                b's' => {
                    let (value, key) = (self.pop()?, self.pop()?);
                    self.set(&[key, value])?;
                }
                b'u' => {
                    let items = self.since_mark()?;
                    self.set(&items)?;
                }
                b'c' => {
                    let (module, name) = (self.line()?, self.line()?);
                    let global = Self::global(&module, &name);
                    self.accept(global)?;
                }
                0x93 => {
                    // STACK_GLOBAL
                    let (name, module) = (self.pop()?, self.pop()?);
                    let (Value::Text(module), Value::Text(name)) =
                        (&self.values[module as usize], &self.values[name as usize])
                    else {
                        return Err("a class whose name is no text".into());
                    };
                    let global = Self::global(module, name);
                    self.accept(global)?;
                }
                b'R' | 0x81 => {
                    // REDUCE, NEWOBJ
                    let (arguments, callable) = (self.pop()?, self.pop()?);
                    self.call(callable, arguments)?;
                }
                0x92 => {
                    // NEWOBJ_EX
                    let (_keywords, arguments, callable) = (self.pop()?, self.pop()?, self.pop()?);
                    self.call(callable, arguments)?;
                }
                b'Q' => {
                    let id = self.pop()?;
                    self.push(Value::Persistent(id))?;
                }
                b'q' => {
                    let index = self.length(1)?;
                    self.remember(index as u32)?;
                }
                b'r' => {
                    let index = self.length(4)?;
                    self.remember(index as u32)?;
                }
                0x94 => self.remember(self.memo.len() as u32)?, // MEMOIZE
                b'h' => {
                    let index = self.length(1)?;
                    self.recall(index as u32)?;
                }
                b'j' => {
                    let index = self.length(4)?;
                    self.recall(index as u32)?;
                }
                other => return Err(format!("unknown opcode {other:#04x}")),
            }
        }
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (head, tail) = self.input.split_at_checked(length).ok_or("it ends too early")?;
        self.input = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], String> {
        Ok(self.bytes(N)?.try_into().expect("as many bytes as asked for"))
    }

    /// A little-endian unsigned integer of up to eight bytes.
    fn length(&mut self, width: usize) -> Result<usize, String> {
        let bytes = self.bytes(width)?;
        let value = bytes.iter().rev().fold(0_u64, |n, &b| n << 8 | u64::from(b));
        usize::try_from(value).map_err(|_| "a length beyond the address space".into())
    }

    /// A signed integer of any length; one that does not fit is of no use here and becomes opaque.
    fn long(&mut self, length: usize) -> Result<(), String> {
        let bytes = self.bytes(length)?;
        if length > 8 {
            return self.push(Value::Bytes);
        }
        let negative = bytes.last().is_some_and(|b| b & 0x80 != 0);
        let value = bytes.iter().rev().fold(if negative { -1_i64 } else { 0 }, |n, &b| n << 8 | i64::from(b));
        self.push(Value::Int(value))
    }

    fn text(&mut self, width: usize) -> Result<(), String> {
        let length = self.length(width)?;
        let text = String::from_utf8_lossy(self.bytes(length)?).into_owned();
        self.push(Value::Text(text))
    }

    fn blob(&mut self, width: usize) -> Result<(), String> {
        let length = self.length(width)?;
        self.bytes(length)?;
        self.push(Value::Bytes)
    }

    fn line(&mut self) -> Result<String, String> {
        let end = self.input.iter().position(|&b| b == b'\n').ok_or("it ends too early")?;
        let line = String::from_utf8_lossy(&self.input[..end]).into_owned();
        self.input = &self.input[end + 1..];
        Ok(line)
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        if self.values.len() == MAX_VALUES {
            return Err(format!("more than {MAX_VALUES} values"));
        }
        self.refer(self.values.len() as Id)?;
        self.values.push(value);
        Ok(())
    }

    /// Puts a value on the stack.
    fn refer(&mut self, id: Id) -> Result<(), String> {
        // Whatever ends in a list has been on the stack, so that this bounds all lists together.
        if self.references == MAX_REFERENCES {
            return Err(format!("more than {MAX_REFERENCES} references to values"));
        }
        self.references += 1;
        self.stack.push(id);
        Ok(())
    }

    fn top(&self) -> Result<Id, String> {
        self.stack.last().copied().ok_or_else(|| "an empty stack".into())
    }

    /// Takes the top of the stack, but nothing from below an open mark.
    fn pop(&mut self) -> Result<Id, String> {
        if self.marks.last().is_some_and(|&mark| mark >= self.stack.len()) {
            return Err("an empty stack".into());
        }
        self.stack.pop().ok_or_else(|| "an empty stack".into())
    }

    fn split(&mut self, at: usize) -> Result<Vec<Id>, String> {
        if self.marks.last().is_some_and(|&mark| mark > at) {
            return Err("an empty stack".into());
        }
        Ok(self.stack.drain(at..).collect())
    }

    fn since_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("a missing mark")?;
        // Nothing is taken from below an open mark, so the stack reaches at least up to it.
        Ok(self.stack.drain(mark..).collect())
    }

    fn append(&mut self, items: &[Id]) -> Result<(), String> {
        let top = self.top()?;
        match &mut self.values[top as usize] {
            Value::Sequence(list) => list.extend_from_slice(items),
            Value::Call(..) => {} // Items of an opaque object.
            _ => return Err("items for something that is no list".into()),
        }
        Ok(())
    }

    fn set(&mut self, items: &[Id]) -> Result<(), String> {
        let top = self.top()?;
        if !items.len().is_multiple_of(2) {
            return Err("a key without a value".into());
        }
        match &mut self.values[top as usize] {
            Value::Dict(entries) => entries.extend(items.chunks_exact(2).map(|pair| (pair[0], pair[1]))),
            Value::Call(..) => {}
            _ => return Err("entries for something that is no dictionary".into()),
        }
        Ok(())
    }

    /// A class or function, if it may be named. Two bytes are enough to refer to a text of many megabytes: only its start is copied.
    fn global(module: &str, name: &str) -> Result<Global, Global> {
        let cut = |text: &str| text.chars().take(100).collect();
        let global = Global { module: cut(module), name: cut(name) };
        if is_allowed(module, name) { Ok(global) } else { Err(global) }
    }

    fn accept(&mut self, global: Result<Global, Global>) -> Result<(), String> {
        match global {
            Ok(global) => self.push(Value::Global(Box::new(global))),
            Err(Global { module, name }) => {
                let message = format!("it refers to {module}.{name}, which has no place in a checkpoint");
                self.refused = Some(Global { module, name });
                Err(message)
            }
        }
    }

    fn call(&mut self, callable: Id, arguments: Id) -> Result<(), String> {
        // Those that are made empty and filled afterwards; a `defaultdict` has an argument that its entries do not depend on.
        let empty = matches!(&self.values[arguments as usize], Value::Sequence(items) if items.is_empty());
        let dict = matches!(&self.values[callable as usize], Value::Global(global)
            if global.module == "collections" && (global.name == "OrderedDict" && empty || global.name == "defaultdict"));
        self.push(if dict { Value::Dict(Vec::new()) } else { Value::Call(callable, arguments) })
    }

    fn remember(&mut self, index: u32) -> Result<(), String> {
        let top = self.top()?;
        self.memo.insert(index, top);
        if self.memo.len() > MAX_VALUES { Err(format!("more than {MAX_VALUES} values to refer to")) } else { Ok(()) }
    }

    fn recall(&mut self, index: u32) -> Result<(), String> {
        let id = *self.memo.get(&index).ok_or("a reference to nothing")?;
        self.refer(id)
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_containers_stay_shared() {
        // python3 -c "import pickle; d={'a':1}; print(pickle.dumps({'x': d, 'y': d}, protocol=2))"
        let bytes =
            b"\x80\x02}q\x00(X\x01\x00\x00\x00xq\x01}q\x02X\x01\x00\x00\x00aq\x03K\x01sX\x01\x00\x00\x00yq\x04h\x02u.";
        let pickle = Pickle::parse(bytes).unwrap();
        let inner = |key| pickle.entry(pickle.entry(pickle.root(), key).unwrap(), "a");
        assert_eq!(inner("x").map(|id| pickle.value(id)), Some(&Value::Int(1)));
        assert_eq!(inner("x"), inner("y"), "candle's reader loses the second");
    }

    #[test]
    fn long_integers_keep_their_sign() {
        // python3 -c "import pickle; print(pickle.dumps((-129, 2**33), protocol=2))"
        let pickle = Pickle::parse(b"\x80\x02J\x7f\xff\xff\xff\x8a\x05\x00\x00\x00\x00\x02\x86q\x00.").unwrap();
        let Value::Sequence(items) = pickle.value(pickle.root()) else { panic!("a tuple") };
        assert_eq!((pickle.value(items[0]), pickle.value(items[1])), (&Value::Int(-129), &Value::Int(1 << 33)));
        let pickle = Pickle::parse(b"\x80\x02\x8a\x02\x7f\xff.").unwrap();
        assert_eq!(pickle.value(pickle.root()), &Value::Int(-129));
    }

    #[test]
    fn code_is_refused_by_name() {
        // python3 -c "import pickle,os; ..." with __reduce__ returning (os.system, ('id',)).
        let error =
            Pickle::parse(b"\x80\x02cposix\nsystem\nq\x00X\x02\x00\x00\x00idq\x01\x85q\x02Rq\x03.").unwrap_err();
        assert_eq!(error, "it refers to posix.system, which has no place in a checkpoint");
        assert!(Pickle::parse(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.").unwrap_err().contains("builtins.eval"));
    }

    #[test]
    fn hostile_pickles_end_in_a_clause() {
        for (bytes, message) in [
            (&b""[..], "it ends too early"),
            (b"X\xff\xff\xff\xffab", "it ends too early"),
            (b".", "an empty stack"),
            (b"N(.", "an empty stack"),
            (b"N(\x85.", "an empty stack"),
            (b"t.", "a missing mark"),
            (b"}(Nu.", "a key without a value"),
            (b"h\x05.", "a reference to nothing"),
            (b"\xff", "unknown opcode 0xff"),
        ] {
            assert_eq!(Pickle::parse(bytes).unwrap_err(), message, "{bytes:?}");
        }
        // Doubling by reference, thirty levels deep, costs thirty values, not a billion.
        let mut bomb = b"\x80\x02)q\x00".to_vec();
        for _ in 0..30 {
            bomb.extend(b"h\x00\x86q\x00");
        }
        bomb.push(b'.');
        assert!(Pickle::parse(&bomb).unwrap().values.len() < 40);
        // A list that holds itself.
        assert!(Pickle::parse(b"]q\x00h\x00a.").is_ok());
    }

    #[test]
    fn what_a_pickle_may_hold_is_bounded() {
        let message = |bytes: Vec<u8>| Pickle::parse(&bytes).map(|_| ()).unwrap_err();
        assert_eq!(message(vec![b'N'; MAX_VALUES + 1]), "more than 2000000 values");
        assert_eq!(message(vec![b'('; MAX_VALUES + 1]), "more than 2000000 marks");
        assert_eq!(
            message([&b"N"[..], &vec![b'2'; MAX_REFERENCES]].concat()),
            "more than 8000000 references to values"
        );
        assert_eq!(message([&b"N"[..], &vec![0x94; MAX_VALUES + 1]].concat()), "more than 2000000 values to refer to");
        // A list in a list in a list, a million deep, and none of it is walked through.
        let deep = [vec![b']'; 1_000_000], vec![b'a'; 999_999], vec![b'.']].concat();
        assert!(Pickle::parse(&deep).is_ok());
        // A long text as the name of a class is refused before it is copied, and not shown whole.
        let mut long = [&b"X\0\0\x80\0"[..], &vec![b'a'; 8 << 20], b"q\0h\0\x93."].concat();
        assert_eq!(message(long.clone()).len(), 100 + 100 + "it refers to ., which has no place in a checkpoint".len());
        long.truncate(long.len() - 2);
        assert_eq!(message(long), "it ends too early");
    }

    #[test]
    fn networks_as_objects_are_told_from_other_classes() {
        let message = |bytes: &[u8]| Pickle::parse(bytes).map(|_| ()).unwrap_err();
        let own = b"\x80\x02cmine\nNet\n)\x81}X\x06\0\0\0configctorch.nn.modules.conv\nConv2d\n.";
        assert!(message(own).starts_with("it holds a network or a part of one as Python objects (mine.Net), which "));
        assert!(
            message(b"\x80\x02cmonai.networks.nets.unet\nUNet\n)\x81.").contains("(monai.networks.nets.unet.UNet)")
        );
        assert_eq!(message(b"\x80\x02cmine\nNet\n)\x81."), "it refers to mine.Net, which has no place in a checkpoint");
    }
}
