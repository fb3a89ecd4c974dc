//! Where the fields of an event's record are: the kernel describes them, as they differ.

use std::collections::HashMap;

use super::ring::Record;

/// The fields of one event.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Format {
    name: String,
    id: u16,
    /// By name: the place, the size, and whether it is where the text is rather than the text.
    fields: HashMap<String, (usize, usize, bool)>,
}

/// The fields of all events that are recorded.
#[derive(Clone, Debug)]
pub(super) struct Formats(HashMap<u16, Format>);

/// A record whose fields can be read by name.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a> {
    format: &'a Format,
    bytes: &'a [u8],
}

impl Format {
    /// Parses the `format` of an event.
    pub(super) fn parse(name: &str, text: &str) -> Option<Self> {
        let id = text.lines().find_map(|line| line.strip_prefix("ID: ")?.trim().parse().ok())?;
        let field = |line: &str| {
            let mut parts = line.trim().split(';').map(str::trim);
            let declaration = parts.next()?.strip_prefix("field:")?;
            let offset = parts.next()?.strip_prefix("offset:")?.parse().ok()?;
            let size = parts.next()?.strip_prefix("size:")?.parse().ok()?;
            let name = declaration.split_whitespace().last()?;
            let name = name.split('[').next()?.to_owned();
            Some((name, (offset, size, declaration.contains("__data_loc"))))
        };
        Some(Self { name: name.to_owned(), id, fields: text.lines().filter_map(field).collect() })
    }
}

/// Where a number is in an event.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Field {
    offset: usize,
    size: usize,
}

impl Field {
    /// Reads the number.
    pub(crate) fn read(self, event: &[u8]) -> Option<u64> {
        let mut all = [0; 8];
        let size = self.size.min(8);
        all[..size].copy_from_slice(event.get(self.offset..self.offset + size)?);
        Some(u64::from_le_bytes(all))
    }
}

impl Format {
    /// Returns the number of the event.
    pub(super) fn id(&self) -> u16 {
        self.id
    }

    /// Returns where a number is.
    pub(super) fn field(&self, name: &str) -> Option<Field> {
        self.fields.get(name).map(|(offset, size, _)| Field { offset: *offset, size: *size })
    }
}

impl Formats {
    pub(super) fn new(all: Vec<Format>) -> Self {
        Self(all.into_iter().map(|format| (format.id, format)).collect())
    }

    /// Returns the name of a record's event, and its fields.
    pub(super) fn of<'a>(&'a self, record: &'a Record) -> Option<(&'a str, Fields<'a>)> {
        let id = u16::from_le_bytes(record.fields.get(..2)?.try_into().ok()?);
        let format = self.0.get(&id)?;
        Some((&format.name, Fields { format, bytes: &record.fields }))
    }
}

impl Fields<'_> {
    /// Returns a number. One that the kernel has not is 0.
    pub(super) fn number(&self, name: &str) -> u64 {
        self.of_array(name, 0)
    }

    /// Returns a thread's ID.
    pub(super) fn thread(&self, name: &str) -> i32 {
        (self.number(name) as u32).cast_signed()
    }

    /// Returns a number of an array of 64-bit ones, or a single one of any size.
    pub(super) fn of_array(&self, name: &str, index: usize) -> u64 {
        let Some((offset, size, _)) = self.format.fields.get(name) else { return 0 };
        let size = (*size).min(8);
        let mut all = [0; 8];
        if let Some(part) = self.bytes.get(offset + 8 * index..offset + 8 * index + size) {
            all[..size].copy_from_slice(part);
        }
        u64::from_le_bytes(all)
    }

    /// Returns a text.
    pub(super) fn text(&self, name: &str) -> String {
        let Some((offset, size, elsewhere)) = self.format.fields.get(name) else {
            return String::new();
        };
        let place = match elsewhere {
            true => {
                let place = self.number(name) as usize;
                (place & 0xffff, place >> 16 & 0xffff)
            }
            false => (*offset, *size),
        };
        let bytes = self.bytes.get(place.0..place.0 + place.1).unwrap_or_default();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        crate::calls::printable(&bytes[..end])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_what_the_kernel_says() {
        let text = "name: x\nID: 7\nformat:\n\
            \tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;\n\
            \tfield:unsigned long args[2];\toffset:8;\tsize:16;\tsigned:0;\n\
            \tfield:__data_loc char[] filename;\toffset:24;\tsize:4;\tsigned:0;\n\
            \tfield:char comm[4];\toffset:28;\tsize:4;\tsigned:0;\n";
        let formats = Formats::new(vec![Format::parse("x", text).unwrap()]);
        let mut fields = vec![7, 0, 0, 0, 0, 0, 0, 0];
        fields.extend([3u64, 4].iter().flat_map(|n| n.to_le_bytes()));
        fields.extend((32u32 | 3 << 16).to_le_bytes());
        fields.extend(b"a\x1b\0zsh\0");
        let record = Record { time: 0, cpu: 0, fields };
        let (name, fields) = formats.of(&record).unwrap();
        assert_eq!((name, fields.of_array("args", 1)), ("x", 4));
        assert_eq!(
            (fields.text("comm"), fields.text("filename")),
            (r"a\u{1b}".into(), "sh".into())
        );
        assert_eq!(fields.number("absent"), 0);
    }
}
