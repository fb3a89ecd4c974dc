//! `profile.proto` of pprof, which `go tool pprof`, Pyroscope, Parca and speedscope read.

use std::collections::HashMap;
use std::io::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::Result;
use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::{Measure, Unit};
use crate::profile::Profile;
use crate::symbols::Function as Named;

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    kind: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Label {
    #[prost(int64, tag = "1")]
    key: i64,
    #[prost(int64, tag = "2")]
    text: i64,
    #[prost(int64, tag = "3")]
    number: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    locations: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    values: Vec<i64>,
    #[prost(message, repeated, tag = "3")]
    labels: Vec<Label>,
}

#[derive(Clone, PartialEq, Message)]
struct Mapping {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "5")]
    file: i64,
    #[prost(bool, tag = "7")]
    has_functions: bool,
}

#[derive(Clone, PartialEq, Message)]
struct Line {
    #[prost(uint64, tag = "1")]
    function: u64,
    #[prost(int64, tag = "2")]
    line: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Location {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(uint64, tag = "2")]
    mapping: u64,
    #[prost(message, repeated, tag = "4")]
    lines: Vec<Line>,
}

#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(int64, tag = "2")]
    name: i64,
    #[prost(int64, tag = "3")]
    system_name: i64,
    #[prost(int64, tag = "4")]
    file: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Proto {
    #[prost(message, repeated, tag = "1")]
    sample_types: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    samples: Vec<Sample>,
    #[prost(message, repeated, tag = "3")]
    mappings: Vec<Mapping>,
    #[prost(message, repeated, tag = "4")]
    locations: Vec<Location>,
    #[prost(message, repeated, tag = "5")]
    functions: Vec<Function>,
    #[prost(string, repeated, tag = "6")]
    strings: Vec<String>,
    #[prost(int64, tag = "9")]
    begun: i64,
    #[prost(int64, tag = "10")]
    duration: i64,
    #[prost(message, optional, tag = "11")]
    period_type: Option<ValueType>,
    #[prost(int64, tag = "12")]
    period: i64,
}

/// Makes a profile, whose texts, functions and files are numbered.
struct Tables {
    proto: Proto,
    strings: HashMap<String, i64>,
    locations: HashMap<Named, u64>,
    functions: HashMap<(String, String), u64>,
    mappings: HashMap<String, u64>,
}

/// Returns the profile, compressed by gzip. `period` is what one sample stands for, if that is the
/// same for all.
///
/// # Errors
/// Does not fail: the error is that of a writer.
pub fn pprof(
    profile: &Profile,
    measure: Measure,
    period: Option<u64>,
    container: impl Fn(usize) -> String,
) -> Result<Vec<u8>> {
    let mut tables = Tables {
        proto: Proto::default(),
        strings: HashMap::new(),
        locations: HashMap::new(),
        functions: HashMap::new(),
        mappings: HashMap::new(),
    };
    // The first text is empty.
    tables.string("");
    let counts = tables.value_type(measure.counted, "count");
    let unit = match measure.unit {
        Unit::Nanoseconds => "nanoseconds",
        Unit::Bytes => "bytes",
    };
    let times = tables.value_type(measure.time, unit);
    tables.proto.sample_types = vec![counts, times.clone()];
    for line in &profile.lines {
        let locations = line.stack.iter().map(|function| tables.location(function)).collect();
        let who = &line.who;
        let mut labels = vec![
            tables.label("container", &container(who.container)),
            tables.label("thread", &line.thread),
            tables.number("pid", who.pid),
            tables.number("tid", who.tid),
        ];
        labels.extend(line.detail.as_deref().map(|detail| tables.label("waits_for", detail)));
        let values = vec![signed(line.weight.count), signed(line.weight.time)];
        tables.proto.samples.push(Sample { locations, values, labels });
    }
    let took = profile.outcome.took;
    let begun = SystemTime::now().checked_sub(took).unwrap_or(UNIX_EPOCH);
    let begun = begun.duration_since(UNIX_EPOCH).unwrap_or_default();
    tables.proto.begun = signed(u64::try_from(begun.as_nanos()).unwrap_or(u64::MAX));
    tables.proto.duration = signed(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX));
    if let Some(period) = period {
        tables.proto.period_type = Some(times);
        tables.proto.period = signed(period);
    }
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&tables.proto.encode_to_vec())?;
    Ok(encoder.finish()?)
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

impl Tables {
    fn string(&mut self, text: &str) -> i64 {
        if let Some(known) = self.strings.get(text) {
            return *known;
        }
        let index = signed(self.proto.strings.len() as u64);
        self.proto.strings.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn value_type(&mut self, kind: &str, unit: &str) -> ValueType {
        ValueType { kind: self.string(kind), unit: self.string(unit) }
    }

    fn label(&mut self, key: &str, text: &str) -> Label {
        Label { key: self.string(key), text: self.string(text), number: 0 }
    }

    fn number(&mut self, key: &str, number: i32) -> Label {
        Label { key: self.string(key), text: 0, number: number.into() }
    }

    fn location(&mut self, named: &Named) -> u64 {
        if let Some(known) = self.locations.get(named) {
            return *known;
        }
        let function = self.function(named);
        let mapping = self.mapping(&named.file);
        let line = named.line.as_ref().map_or(0, |(_, line)| i64::from(*line));
        let id = self.proto.locations.len() as u64 + 1;
        let lines = vec![Line { function, line }];
        self.proto.locations.push(Location { id, mapping, lines });
        self.locations.insert(named.clone(), id);
        id
    }

    fn function(&mut self, named: &Named) -> u64 {
        let source = named.line.as_ref().map_or("", |(file, _)| file).to_owned();
        let key = (named.name.clone(), source);
        if let Some(known) = self.functions.get(&key) {
            return *known;
        }
        let id = self.proto.functions.len() as u64 + 1;
        let (name, file) = (self.string(&key.0), self.string(&key.1));
        self.proto.functions.push(Function { id, name, system_name: name, file });
        self.functions.insert(key, id);
        id
    }

    fn mapping(&mut self, file: &str) -> u64 {
        if let Some(known) = self.mappings.get(file) {
            return *known;
        }
        let id = self.proto.mappings.len() as u64 + 1;
        let name = self.string(file);
        self.proto.mappings.push(Mapping { id, file: name, has_functions: true });
        self.mappings.insert(file.to_owned(), id);
        id
    }
}
