//! A minimal ttrpc client: one blocking connection, one call at a time. A
//! client library would add its own threads and task switches to every figure.
//! The framing is that of ttrpc's PROTOCOL.md: a header of ten bytes (length,
//! stream, kind, flags), then a protobuf `Request` or `Response`.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::ttrpc::proto::{KeyValue, Request, Response};

/// The containerd namespace of everything that the benchmark makes.
pub const NAMESPACE: &str = "palisade-bench";

const HEADER: usize = 10;
const REQUEST: u8 = 1;
const RESPONSE: u8 = 2;

/// The longest message of a shim (ttrpc's `messageLengthMax`).
const LONGEST: usize = 4 << 20;

/// Time in which a shim must reply. One that hangs is a figure, too.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// A connection to a shim.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    service: &'static str,
    next_stream: u32,
}

impl Client {
    /// Connects to the address that `start` printed: `unix://PATH`, with the
    /// version of the Task service at it.
    pub fn connect(address: &str, version: u32) -> Result<Client> {
        let path = address.strip_prefix("unix://").unwrap_or(address);
        let stream = UnixStream::connect(path).with_context(|| format!("connect to {address}"))?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT)).context("limit the time of a reply")?;
        let service = match version {
            3 => "containerd.task.v3.Task",
            _ => "containerd.task.v2.Task",
        };
        Ok(Client { stream, service, next_stream: 1 })
    }

    /// Makes one call of the Task service, from the request's first byte to the
    /// reply's last.
    pub fn call<A: Message>(&mut self, method: &str, request: &impl Message) -> Result<A> {
        self.call_service(self.service, method, request)
    }

    /// Makes one call of any service.
    pub fn call_service<A: Message>(
        &mut self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<A> {
        let stream = self.next_stream;
        self.next_stream += 2;
        let payload = Request {
            service: service.to_owned(),
            method: method.to_owned(),
            payload: request.write_to_bytes()?,
            metadata: vec![KeyValue {
                key: "containerd-namespace-ttrpc".to_owned(),
                value: NAMESPACE.to_owned(),
                ..Default::default()
            }],
            ..Default::default()
        };
        write_frame(&mut self.stream, stream, REQUEST, &payload.write_to_bytes()?)?;
        let (answered, _, answer) = read_frame(&mut self.stream)?
            .with_context(|| format!("the shim hung up instead of answering {method}"))?;
        if answered != stream {
            bail!("{method}: an answer on stream {answered}, expected {stream}");
        }
        let answer = Response::parse_from_bytes(&answer)?;
        if answer.status().code() as i32 != 0 {
            bail!("{method}: {}", answer.status().message);
        }
        Ok(A::parse_from_bytes(&answer.payload)?)
    }
}

/// Reads a request as a server does. Returns its stream and itself, or `None`
/// at the end.
pub fn read_request(stream: &mut UnixStream) -> Result<Option<(u32, Request)>> {
    match read_frame(stream)? {
        Some((id, REQUEST, payload)) => Ok(Some((id, Request::parse_from_bytes(&payload)?))),
        Some((_, kind, _)) => bail!("a ttrpc message of kind {kind}, expected a request"),
        None => Ok(None),
    }
}

/// Replies to a request with an empty message.
pub fn reply_empty(stream: &mut UnixStream, id: u32) -> Result<()> {
    write_frame(stream, id, RESPONSE, &Response::new().write_to_bytes()?)
}

fn write_frame(to: &mut UnixStream, stream: u32, kind: u8, payload: &[u8]) -> Result<()> {
    let length = u32::try_from(payload.len())?;
    let mut frame = Vec::with_capacity(HEADER + payload.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(&[kind, 0]);
    frame.extend_from_slice(payload);
    to.write_all(&frame).context("write a ttrpc message")
}

fn read_frame(from: &mut UnixStream) -> Result<Option<(u32, u8, Vec<u8>)>> {
    let mut header = [0; HEADER];
    match from.read(&mut header).context("read a ttrpc message")? {
        0 => return Ok(None),
        n => from.read_exact(&mut header[n..]).context("read a ttrpc header")?,
    }
    let number = |at: usize| {
        u32::from_be_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]])
    };
    let length = number(0) as usize;
    if length > LONGEST {
        bail!("a ttrpc message of {length} bytes, expected at most {LONGEST}");
    }
    let mut payload = vec![0; length];
    from.read_exact(&mut payload).context("read a ttrpc payload")?;
    Ok(Some((number(4), header[8], payload)))
}
