//! Makes slices and moments of the kernel's records.

use std::collections::{HashMap, HashSet};

use anyhow::Result;
use sandbox_core::types::{Call, HostPid};

use super::format::{Fields, Formats};
use super::perfetto::{
    Annotation, FtraceEvent, FtraceEvents, Kind, Packet, ProcessDescriptor, Switch,
    ThreadDescriptor, TrackDescriptor, TrackEvent, Waking, Writer,
};
use super::ring::Record;
use super::threads::{Threads, call_of};
use super::{Event, Wanted};
use crate::calls::{self, Inside, Nothing, Process, native};

/// What is written, and what has begun and not ended yet.
pub(super) struct Timeline {
    writer: Writer,
    formats: Formats,
    /// What the containers are called.
    containers: Vec<String>,
    /// The names of calls by their numbers, and what they wait for.
    names: HashMap<u32, (String, Option<calls::Waits>)>,
    /// The threads that are in a call.
    in_call: HashSet<i32>,
    /// The calls that threads seemed to be in when the trace began: what a thread does first tells
    /// whether it was.
    before: HashMap<i32, TrackEvent>,
    /// When the trace began.
    began: u64,
    /// The requests of disks that have no answer yet, each on a track of its own.
    requests: HashMap<(u64, u64), u64>,
    /// The tracks of disks that are free, by disk, and how many there are.
    free: HashMap<u64, Vec<u64>>,
    tracks: u64,
    records: u64,
}

/// The most requests that wait for their answers.
const REQUESTS: usize = 4096;

/// The numbers of tracks: what they are for, and which one.
mod track {
    pub(super) const POD: u64 = 1;
    const CONTAINER: u64 = 1 << 48;
    const PROCESS: u64 = 2 << 48;
    const THREAD: u64 = 3 << 48;
    const DISK: u64 = 4 << 48;

    pub(super) fn container(number: usize) -> u64 {
        CONTAINER | number as u64
    }
    pub(super) fn process(pid: i32) -> u64 {
        PROCESS | u64::from(pid.cast_unsigned())
    }
    pub(super) fn thread(id: i32) -> u64 {
        THREAD | u64::from(id.cast_unsigned())
    }
    pub(super) fn disk(number: u64) -> u64 {
        DISK | number
    }
}

impl Timeline {
    pub(super) fn new(writer: Writer, wanted: &Wanted, formats: Formats) -> Self {
        Self {
            writer,
            formats,
            containers: wanted.containers.iter().map(|container| container.name.clone()).collect(),
            names: HashMap::new(),
            in_call: HashSet::new(),
            before: HashMap::new(),
            began: 0,
            requests: HashMap::new(),
            free: HashMap::new(),
            tracks: 0,
            records: 0,
        }
    }

    /// Returns the size of what is written.
    pub(super) fn written(&self) -> u64 {
        self.writer.written()
    }

    /// Describes what is new: the tracks with their names.
    pub(super) fn describe(&mut self, threads: &mut Threads) -> Result<()> {
        let (processes, threads) = threads.undescribed();
        for (pid, process) in processes {
            let container = process.container.and_then(|number| self.containers.get(number));
            let container = container.map_or("sandbox", String::as_str);
            let descriptor = ProcessDescriptor {
                pid: Some(pid),
                command: vec![process.command.clone()],
                name: Some(format!("{container}: {}", process.command)),
            };
            self.track(TrackDescriptor {
                uuid: Some(track::process(pid)),
                process: Some(descriptor),
                ..TrackDescriptor::default()
            })?;
        }
        for (id, thread) in threads {
            let descriptor = ThreadDescriptor {
                pid: Some(thread.process),
                thread: Some(id.into()),
                name: Some(thread.name),
            };
            self.track(TrackDescriptor {
                uuid: Some(track::thread(id)),
                parent: Some(track::process(thread.process)),
                thread: Some(descriptor),
                ..TrackDescriptor::default()
            })?;
        }
        Ok(())
    }

    /// Describes the tracks of the pod and its containers, and notes the calls that the threads
    /// are in.
    pub(super) fn begin(&mut self, pod: &str, threads: &Threads, began: u64) -> Result<()> {
        self.began = began;
        self.named(track::POD, None, format!("pod {pod}"))?;
        for number in 0..self.containers.len() {
            let name = format!("container {}", self.containers[number]);
            self.named(track::container(number), Some(track::POD), name)?;
        }
        for id in threads.ids() {
            if let Some(call) = call_of(id) {
                let event = self.call(id, &call, &Process::open(HostPid(id)));
                self.before.insert(id, event);
            }
        }
        Ok(())
    }

    /// Takes records, in the order of time.
    pub(super) fn take(
        &mut self,
        records: impl Iterator<Item = Record>,
        threads: &mut Threads,
    ) -> Result<()> {
        let records: Vec<Record> = records.collect();
        let formats = self.formats.clone();
        // The calls that last: the memory of their threads is still what they were called with.
        let mut last: HashMap<i32, usize> = HashMap::new();
        for (at, record) in records.iter().enumerate() {
            if let Some(("sys_enter" | "sys_exit", fields)) = formats.of(record) {
                last.insert(fields.thread("common_pid"), at);
            }
        }
        for (at, record) in records.iter().enumerate() {
            if let Some((name, fields)) = formats.of(record) {
                let lasts = last.get(&fields.thread("common_pid")) == Some(&at);
                self.records += 1;
                self.take_one(record, name, fields, lasts, threads)?;
            }
        }
        Ok(())
    }

    /// Writes what a shim has reported.
    pub(super) fn happened(&mut self, event: &Event) -> Result<()> {
        let detail = vec![annotation("event", event.detail.clone())];
        self.instant(track::POD, event.at, "lifecycle", event.name.clone(), detail)
    }

    /// Writes how much is missing, and ends. Returns the number of records and the size.
    pub(super) fn finish(mut self, lost: u64, now: u64) -> Result<(u64, u64)> {
        // They did nothing else all the time.
        for (_, event) in std::mem::take(&mut self.before) {
            self.event(event, self.began)?;
        }
        if lost > 0 {
            let name = format!("{lost} records were lost");
            self.instant(track::POD, now, "lost", name, Vec::new())?;
        }
        Ok((self.records, self.writer.finish()?))
    }

    fn take_one(
        &mut self,
        record: &Record,
        name: &str,
        fields: Fields<'_>,
        lasts: bool,
        threads: &mut Threads,
    ) -> Result<()> {
        let thread = fields.thread("common_pid");
        match name {
            "sched_switch" => self.switched(record, fields, threads),
            "sched_waking" if threads.knows(fields.thread("pid")) => {
                let waking = Waking {
                    name: Some(fields.text("comm")),
                    thread: Some(fields.thread("pid")),
                    priority: Some(fields.thread("prio")),
                    cpu: Some(fields.thread("target_cpu")),
                };
                // Who wakes a thread is told only of the pod's own.
                let waker = if threads.knows(thread) { thread } else { 0 };
                self.ftrace(record, waker, None, Some(waking))
            }
            "block_rq_complete" => self.answered(record.time, fields),
            _ if !threads.knows(thread) => Ok(()),
            "sys_enter" => {
                let arguments = std::array::from_fn(|number| fields.of_array("args", number));
                let call = native(fields.number("id") as u32, arguments);
                let stays = lasts && call_of(thread) == Some(call);
                if stays {
                    let inside = Process::open(HostPid(thread));
                    self.begin_call(thread, &call, &inside, record.time)
                } else {
                    self.begin_call(thread, &call, &Nothing, record.time)
                }
            }
            "sys_exit" => {
                let returned = fields.number("ret").cast_signed();
                self.end_call(thread, Some(returned), record.time)
            }
            "sched_process_fork" => {
                let child = fields.thread("child_pid");
                threads.forked(thread, child, fields.text("child_comm"));
                self.describe(threads)
            }
            "sched_process_exec" => {
                let program = fields.text("filename");
                threads.executed(thread, program.clone());
                self.describe(threads)?;
                self.of_container(thread, record.time, format!("exec {program}"), threads)
            }
            "sched_process_exit" => {
                self.end_call(thread, None, record.time)?;
                // Kernels before 6.16 do not say whether it was the last thread.
                match fields.number("group_dead") {
                    0 => Ok(()),
                    _ => {
                        let name = format!("exit of {} ({thread})", fields.text("comm"));
                        self.of_container(thread, record.time, name, threads)
                    }
                }
            }
            "page_fault_user" => {
                let code = fields.number("error_code");
                let kind = match (code & 0x10 != 0, code & 2 != 0) {
                    (true, _) => "execute",
                    (_, true) => "write",
                    _ => "read",
                };
                let notes = vec![
                    annotation("address", format!("{:#x}", fields.number("address"))),
                    annotation("instruction", format!("{:#x}", fields.number("ip"))),
                    annotation("access", kind.to_owned()),
                ];
                let on = track::thread(thread);
                self.instant(on, record.time, "fault", "page fault".to_owned(), notes)
            }
            "block_rq_issue" => self.asked(record.time, thread, fields),
            _ => Ok(()),
        }
    }

    /// Returns the beginning of a call.
    fn call(&mut self, thread: i32, call: &Call, inside: &dyn Inside) -> TrackEvent {
        let known = || (calls::name(call), calls::waits(call, &Nothing));
        let (name, waits) = self.names.entry(call.number).or_insert_with(known).clone();
        let waits = waits.and_then(|_| calls::waits(call, inside));
        let mut categories = vec!["syscall".to_owned()];
        categories.extend(waits.map(|waits| format!("wait-{}", waits.name())));
        let notes = calls::arguments(call, inside);
        TrackEvent {
            annotations: notes.into_iter().map(|(name, text)| annotation(name, text)).collect(),
            kind: Some(Kind::Begin.into()),
            track: Some(track::thread(thread)),
            categories,
            name: Some(name),
        }
    }

    fn begin_call(
        &mut self,
        thread: i32,
        call: &Call,
        inside: &dyn Inside,
        time: u64,
    ) -> Result<()> {
        // It entered this one only now.
        self.before.remove(&thread);
        // The end of another one was lost.
        self.end_call(thread, None, time)?;
        self.in_call.insert(thread);
        let event = self.call(thread, call, inside);
        self.event(event, time)
    }

    fn end_call(&mut self, thread: i32, returned: Option<i64>, time: u64) -> Result<()> {
        match self.before.remove(&thread) {
            Some(event) => self.event(event, self.began)?,
            None if !self.in_call.remove(&thread) => return Ok(()),
            None => {}
        }
        let returned = returned.map(|value| annotation("returned", calls::outcome(value)));
        self.event(
            TrackEvent {
                annotations: returned.into_iter().collect(),
                kind: Some(Kind::End.into()),
                track: Some(track::thread(thread)),
                ..TrackEvent::default()
            },
            time,
        )
    }

    /// Another thread runs. Those that are not of the pod are nobody's business: the CPU is idle
    /// then, as far as this trace shows.
    fn switched(&mut self, record: &Record, fields: Fields<'_>, threads: &Threads) -> Result<()> {
        let (from, to) = (fields.thread("prev_pid"), fields.thread("next_pid"));
        let (knows_from, knows_to) = (threads.knows(from), threads.knows(to));
        if !knows_from && !knows_to {
            return Ok(());
        }
        let name = |known: bool, field| if known { fields.text(field) } else { "-".to_owned() };
        let switch = Switch {
            previous_name: Some(name(knows_from, "prev_comm")),
            previous: Some(if knows_from { from } else { 0 }),
            previous_priority: Some(fields.thread("prev_prio")),
            previous_state: Some(fields.number("prev_state").cast_signed()),
            next_name: Some(name(knows_to, "next_comm")),
            next: Some(if knows_to { to } else { 0 }),
            next_priority: Some(fields.thread("next_prio")),
        };
        let previous = if knows_from { from } else { 0 };
        self.ftrace(record, previous, Some(switch), None)
    }

    /// A thread asks a disk.
    fn asked(&mut self, time: u64, thread: i32, fields: Fields<'_>) -> Result<()> {
        let (disk, sector) = (fields.number("dev"), fields.number("sector"));
        if self.requests.len() >= REQUESTS || self.requests.contains_key(&(disk, sector)) {
            return Ok(());
        }
        // Requests overlap, and slices of one track must not.
        let number = match self.free.get_mut(&disk).and_then(Vec::pop) {
            Some(number) => number,
            None => {
                self.tracks += 1;
                let number = track::disk(self.tracks);
                let name = format!("disk {}:{}", disk >> 20, disk & 0xf_ffff);
                self.named(number, Some(track::POD), name)?;
                number
            }
        };
        self.requests.insert((disk, sector), number);
        let bytes = fields.number("bytes");
        let kind = fields.text("rwbs");
        let notes = vec![
            annotation("thread", format!("{} ({thread})", fields.text("comm"))),
            annotation("sector", sector.to_string()),
            annotation("bytes", bytes.to_string()),
            annotation("kind", kind.clone()),
        ];
        self.event(
            TrackEvent {
                annotations: notes,
                kind: Some(Kind::Begin.into()),
                track: Some(number),
                categories: vec!["block".to_owned()],
                name: Some(format!("{kind} {bytes}")),
            },
            time,
        )
    }

    /// A disk answers.
    fn answered(&mut self, time: u64, fields: Fields<'_>) -> Result<()> {
        let key = (fields.number("dev"), fields.number("sector"));
        let Some(number) = self.requests.remove(&key) else { return Ok(()) };
        self.free.entry(key.0).or_default().push(number);
        self.event(
            TrackEvent {
                kind: Some(Kind::End.into()),
                track: Some(number),
                ..TrackEvent::default()
            },
            time,
        )
    }

    fn of_container(
        &mut self,
        thread: i32,
        time: u64,
        name: String,
        threads: &Threads,
    ) -> Result<()> {
        let on = threads.container(thread).map_or(track::POD, track::container);
        self.instant(on, time, "lifecycle", name, vec![annotation("thread", thread.to_string())])
    }

    fn instant(
        &mut self,
        on: u64,
        time: u64,
        category: &str,
        name: String,
        annotations: Vec<Annotation>,
    ) -> Result<()> {
        self.event(
            TrackEvent {
                annotations,
                kind: Some(Kind::Instant.into()),
                track: Some(on),
                categories: vec![category.to_owned()],
                name: Some(name),
            },
            time,
        )
    }

    fn named(&mut self, number: u64, parent: Option<u64>, name: String) -> Result<()> {
        self.track(TrackDescriptor {
            uuid: Some(number),
            parent,
            name: Some(name),
            ..TrackDescriptor::default()
        })
    }

    fn track(&mut self, descriptor: TrackDescriptor) -> Result<()> {
        self.writer.write(Packet { track_descriptor: Some(descriptor), ..Packet::default() })
    }

    fn event(&mut self, event: TrackEvent, time: u64) -> Result<()> {
        let (track_event, timestamp) = (Some(event), Some(time));
        self.writer.write(Packet { track_event, timestamp, ..Packet::default() })
    }

    fn ftrace(
        &mut self,
        record: &Record,
        thread: i32,
        switch: Option<Switch>,
        waking: Option<Waking>,
    ) -> Result<()> {
        let pid = Some(thread.cast_unsigned());
        let event = FtraceEvent { timestamp: Some(record.time), pid, switch, waking };
        let events = FtraceEvents { cpu: Some(record.cpu), events: vec![event] };
        self.writer.write(Packet { ftrace_events: Some(events), ..Packet::default() })
    }
}

fn annotation(name: &str, text: String) -> Annotation {
    Annotation { name: Some(name.to_owned()), text: Some(text) }
}
