//! The messages of Perfetto's traces that are written, with the fields that are used of them
//! (<https://perfetto.dev/docs/reference/trace-packet-proto>).

use std::fs::File;
use std::io::{BufWriter, Write};

use anyhow::{Context, Result};
use prost::Message;

/// A part of a trace. A file is a list of them.
#[derive(Clone, PartialEq, Message)]
pub(super) struct Packet {
    #[prost(message, optional, tag = "1")]
    pub(super) ftrace_events: Option<FtraceEvents>,
    #[prost(uint64, optional, tag = "8")]
    pub(super) timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "10")]
    pub(super) sequence: Option<u32>,
    #[prost(message, optional, tag = "11")]
    pub(super) track_event: Option<TrackEvent>,
    #[prost(message, optional, tag = "60")]
    pub(super) track_descriptor: Option<TrackDescriptor>,
}

/// A file: with a packet at a time, it is written as one grows.
#[derive(Clone, PartialEq, Message)]
struct Trace {
    #[prost(message, repeated, tag = "1")]
    packet: Vec<Packet>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TrackDescriptor {
    #[prost(uint64, optional, tag = "1")]
    pub(super) uuid: Option<u64>,
    #[prost(uint64, optional, tag = "5")]
    pub(super) parent: Option<u64>,
    #[prost(string, optional, tag = "2")]
    pub(super) name: Option<String>,
    #[prost(message, optional, tag = "3")]
    pub(super) process: Option<ProcessDescriptor>,
    #[prost(message, optional, tag = "4")]
    pub(super) thread: Option<ThreadDescriptor>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ProcessDescriptor {
    #[prost(int32, optional, tag = "1")]
    pub(super) pid: Option<i32>,
    #[prost(string, repeated, tag = "2")]
    pub(super) command: Vec<String>,
    #[prost(string, optional, tag = "6")]
    pub(super) name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct ThreadDescriptor {
    #[prost(int32, optional, tag = "1")]
    pub(super) pid: Option<i32>,
    #[prost(int64, optional, tag = "2")]
    pub(super) thread: Option<i64>,
    #[prost(string, optional, tag = "5")]
    pub(super) name: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct TrackEvent {
    #[prost(message, repeated, tag = "4")]
    pub(super) annotations: Vec<Annotation>,
    #[prost(enumeration = "Kind", optional, tag = "9")]
    pub(super) kind: Option<i32>,
    #[prost(uint64, optional, tag = "11")]
    pub(super) track: Option<u64>,
    #[prost(string, repeated, tag = "22")]
    pub(super) categories: Vec<String>,
    #[prost(string, optional, tag = "23")]
    pub(super) name: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, prost::Enumeration)]
#[repr(i32)]
pub(super) enum Kind {
    Unspecified = 0,
    Begin = 1,
    End = 2,
    Instant = 3,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Annotation {
    #[prost(string, optional, tag = "10")]
    pub(super) name: Option<String>,
    #[prost(string, optional, tag = "6")]
    pub(super) text: Option<String>,
}

/// Events of one CPU, from which Perfetto makes the states of threads.
#[derive(Clone, PartialEq, Message)]
pub(super) struct FtraceEvents {
    #[prost(uint32, optional, tag = "1")]
    pub(super) cpu: Option<u32>,
    #[prost(message, repeated, tag = "2")]
    pub(super) events: Vec<FtraceEvent>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct FtraceEvent {
    #[prost(uint64, optional, tag = "1")]
    pub(super) timestamp: Option<u64>,
    #[prost(uint32, optional, tag = "2")]
    pub(super) pid: Option<u32>,
    #[prost(message, optional, tag = "4")]
    pub(super) switch: Option<Switch>,
    #[prost(message, optional, tag = "20")]
    pub(super) waking: Option<Waking>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Switch {
    #[prost(string, optional, tag = "1")]
    pub(super) previous_name: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(super) previous: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub(super) previous_priority: Option<i32>,
    #[prost(int64, optional, tag = "4")]
    pub(super) previous_state: Option<i64>,
    #[prost(string, optional, tag = "5")]
    pub(super) next_name: Option<String>,
    #[prost(int32, optional, tag = "6")]
    pub(super) next: Option<i32>,
    #[prost(int32, optional, tag = "7")]
    pub(super) next_priority: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct Waking {
    #[prost(string, optional, tag = "1")]
    pub(super) name: Option<String>,
    #[prost(int32, optional, tag = "2")]
    pub(super) thread: Option<i32>,
    #[prost(int32, optional, tag = "3")]
    pub(super) priority: Option<i32>,
    #[prost(int32, optional, tag = "5")]
    pub(super) cpu: Option<i32>,
}

/// Writes packets to a file.
pub(super) struct Writer {
    file: BufWriter<File>,
    buffer: Vec<u8>,
    written: u64,
}

impl Writer {
    pub(super) fn new(file: File) -> Self {
        Self { file: BufWriter::with_capacity(1 << 18, file), buffer: Vec::new(), written: 0 }
    }

    pub(super) fn write(&mut self, packet: Packet) -> Result<()> {
        self.buffer.clear();
        // Packets of all CPUs are one sequence of ours: Perfetto sorts them by their times.
        let packet = Packet { sequence: Some(1), ..packet };
        Trace { packet: vec![packet] }.encode(&mut self.buffer).context("encode a packet")?;
        self.written += self.buffer.len() as u64;
        self.file.write_all(&self.buffer).context("write the trace")
    }

    /// Returns the size so far.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Writes what is left.
    pub(super) fn finish(mut self) -> Result<u64> {
        self.file.flush().context("write the trace")?;
        Ok(self.written)
    }
}
