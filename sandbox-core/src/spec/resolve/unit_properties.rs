//! Annotations that set properties of the container's systemd unit, as with
//! runc (`docs/systemd.md`, "Auxiliary properties"). The property's name
//! follows the prefix. Its value is in the text format of GVariant.

use std::collections::HashMap;
use std::time::Duration;

use super::check::refuse;
use crate::error::Result;
use crate::spec::plan::{PropertyValue, UnitProperty};

pub(super) const PREFIX: &str = "org.systemd.property.";

/// Returns the properties, sorted by name.
pub(super) fn plan(annotations: &HashMap<String, String>) -> Result<Vec<UnitProperty>> {
    let mut all = Vec::new();
    for (key, text) in annotations {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        let field = || format!("annotations[{key:?}]");
        if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
            return refuse(field(), format!("{name:?} is no name of a property: expected letters"));
        }
        let Some(property) = property(name, text.trim()) else {
            return refuse(
                field(),
                format!("{text:?}, expected true, 'text', ['one', 'two'], 5 or uint64 5"),
            );
        };
        all.push(property);
    }
    all.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(all)
}

/// Parses one property. Times are documented in seconds (`TimeoutStopSec=`) but
/// are microseconds on the bus.
fn property(name: &str, text: &str) -> Option<UnitProperty> {
    let stem = name.strip_suffix("Sec").filter(|stem| stem.ends_with(|c: char| c.is_lowercase()));
    let (name, value) = match stem {
        Some(stem) => (format!("{stem}USec"), PropertyValue::U64(microseconds(text)?)),
        None => (name.to_owned(), value(text)?),
    };
    Some(UnitProperty { name, value })
}

/// Converts a number of seconds, which may have a fraction, to microseconds.
fn microseconds(text: &str) -> Option<u64> {
    const KINDS: [&str; 5] = ["int32 ", "uint32 ", "int64 ", "uint64 ", "double "];
    let number = KINDS.iter().find_map(|kind| text.strip_prefix(kind)).unwrap_or(text);
    let seconds = Duration::try_from_secs_f64(number.trim().parse().ok()?).ok()?;
    seconds.as_micros().try_into().ok()
}

fn value(text: &str) -> Option<PropertyValue> {
    if let Some(items) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return texts(items).map(PropertyValue::Texts);
    }
    if text.starts_with(['\'', '"']) {
        let (value, rest) = quoted(text)?;
        return rest.is_empty().then_some(PropertyValue::Text(value));
    }
    match text.split_once(char::is_whitespace).map(|(kind, number)| (kind, number.trim())) {
        None if ["true", "false"].contains(&text) => Some(PropertyValue::Flag(text == "true")),
        None | Some(("int32", _)) => number(text, "int32").map(PropertyValue::I32),
        Some(("uint32", n)) => n.parse().ok().map(PropertyValue::U32),
        Some(("int64", n)) => n.parse().ok().map(PropertyValue::I64),
        Some(("uint64", n)) => n.parse().ok().map(PropertyValue::U64),
        Some(_) => None,
    }
}

/// Parses a number whose type may be omitted.
fn number(text: &str, kind: &str) -> Option<i32> {
    text.strip_prefix(kind).unwrap_or(text).trim().parse().ok()
}

fn texts(items: &str) -> Option<Vec<String>> {
    let mut all = Vec::new();
    let mut rest = items.trim();
    while !rest.is_empty() {
        let (text, after) = quoted(rest)?;
        all.push(text);
        let after = after.trim_start();
        rest = match after.strip_prefix(',') {
            Some(more) => more.trim_start(),
            None if after.is_empty() => after,
            None => return None,
        };
    }
    Some(all)
}

/// Splits a text into a quoted value and the rest.
fn quoted(text: &str) -> Option<(String, &str)> {
    let mut chars = text.chars();
    let quote = chars.next().filter(|c| ['\'', '"'].contains(c))?;
    let mut value = String::new();
    loop {
        match chars.next()? {
            c if c == quote => return Some((value, chars.as_str())),
            '\\' => value.push(match chars.next()? {
                'n' => '\n',
                't' => '\t',
                c @ ('\\' | '\'' | '"') => c,
                _ => return None,
            }),
            '\0' => return None,
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(name: &str, text: &str) -> Result<Vec<UnitProperty>> {
        let ours = (format!("{PREFIX}{name}"), text.to_owned());
        plan(&HashMap::from([ours, ("other".to_owned(), "?".to_owned())]))
    }

    #[test]
    fn values_are_parsed_as_gvariant_text() {
        use PropertyValue::*;
        let cases = [
            ("true", Flag(true)),
            ("'two words'", Text("two words".to_owned())),
            (r#""it's \"quoted\"""#, Text("it's \"quoted\"".to_owned())),
            ("['a.service', \"b\"]", Texts(vec!["a.service".to_owned(), "b".to_owned()])),
            ("[]", Texts(Vec::new())),
            ("-5", I32(-5)),
            ("int32 5", I32(5)),
            ("uint32  7", U32(7)),
            ("int64 -8", I64(-8)),
            ("uint64 18446744073709551615", U64(u64::MAX)),
        ];
        for (text, value) in cases {
            let expected = [UnitProperty { name: "Name".to_owned(), value }];
            assert_eq!(planned("Name", text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn seconds_are_microseconds_on_the_bus() {
        for (text, microseconds) in
            [("30", 30_000_000), ("uint64 2", 2_000_000), ("double 0.25", 250_000)]
        {
            let value = PropertyValue::U64(microseconds);
            let expected = [UnitProperty { name: "TimeoutStopUSec".to_owned(), value }];
            assert_eq!(planned("TimeoutStopSec", text).unwrap(), expected);
        }
        assert_eq!(planned("TimeoutStopUSec", "uint64 9").unwrap()[0].name, "TimeoutStopUSec");
    }

    #[test]
    fn an_invalid_value_is_refused_by_name() {
        let cases = [
            ("CollectMode", "inactive"),
            ("CollectMode", "'open"),
            ("CollectMode", "'a' b"),
            ("Wants", "['a' 'b']"),
            ("TasksMax", "uint64 -1"),
            ("TasksMax", "uint128 1"),
            ("TasksMax", "0.5"),
            ("TimeoutStopSec", "'soon'"),
            ("TimeoutStopSec", "-1"),
            ("TimeoutStopSec", "about 1"),
            ("A", "true"),
            ("Two_Words", "true"),
        ];
        for (name, text) in cases {
            let error = planned(name, text).unwrap_err().to_string();
            assert!(error.contains(&format!("{PREFIX}{name}")), "{error}");
        }
    }
}
