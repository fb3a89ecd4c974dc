//! The fields of a protobuf message, to copy those that nobody here knows as they are.

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

use crate::error::{Error, Result};

/// A field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Field<'a> {
    /// Its number.
    pub(super) number: u32,
    /// All its bytes, with its number.
    pub(super) raw: &'a [u8],
    pub(super) value: Value<'a>,
}

/// The value of a field.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value<'a> {
    Number(u64),
    /// A text, or a message.
    Bytes(&'a [u8]),
    /// A number of fixed size.
    Fixed,
}

impl<'a> Value<'a> {
    /// Returns the bytes of a message.
    pub(super) fn message(self) -> Result<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Ok(bytes),
            _ => Err(Error::invalid("a field is no message")),
        }
    }
}

/// Returns the fields of a message.
///
/// # Errors
/// `Invalid` if these bytes are none, or have groups, which criu's messages have not.
pub(super) fn fields(message: &[u8]) -> Result<Vec<Field<'_>>> {
    let mut fields = Vec::new();
    let mut rest = message;
    while !rest.is_empty() {
        let (field, after) = first(rest).ok_or_else(|| Error::invalid("this is no message"))?;
        fields.push(field);
        rest = after;
    }
    Ok(fields)
}

fn first(message: &[u8]) -> Option<(Field<'_>, &[u8])> {
    let mut rest = message;
    let (number, wire_type) = decode_key(&mut rest).ok()?;
    let value = match wire_type {
        WireType::Varint => Value::Number(decode_varint(&mut rest).ok()?),
        WireType::LengthDelimited => {
            let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
            let (bytes, after) = rest.split_at_checked(length)?;
            rest = after;
            Value::Bytes(bytes)
        }
        WireType::ThirtyTwoBit => {
            rest = rest.get(4..)?;
            Value::Fixed
        }
        WireType::SixtyFourBit => {
            rest = rest.get(8..)?;
            Value::Fixed
        }
        WireType::StartGroup | WireType::EndGroup => return None,
    };
    let raw = &message[..message.len() - rest.len()];
    Some((Field { number, raw, value }, rest))
}

/// Returns the number in a field of a message. The last one counts.
pub(super) fn number_in(message: &[u8], number: u32) -> Result<Option<u64>> {
    let numbers = fields(message)?.into_iter().filter(|field| field.number == number);
    numbers.map(|field| field.value).next_back().map_or(Ok(None), |value| match value {
        Value::Number(value) => Ok(Some(value)),
        _ => Err(Error::invalid(format!("field {number} is no number"))),
    })
}

/// Writes a field that is a number.
pub(super) fn put_number(number: u32, value: u64, to: &mut Vec<u8>) {
    encode_key(number, WireType::Varint, to);
    encode_varint(value, to);
}

/// Writes a field that is a message.
pub(super) fn put_message(number: u32, message: &[u8], to: &mut Vec<u8>) {
    encode_key(number, WireType::LengthDelimited, to);
    encode_varint(message.len() as u64, to);
    to.extend_from_slice(message);
}
