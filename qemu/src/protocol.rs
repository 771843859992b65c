//! What the host and the agent in a machine say to each other over the virtio-serial port.
//!
//! The port is a reliable byte stream. Both directions carry frames: length of the rest (`u32`, little endian), kind (`u8`),
//! command id (`u32`), payload. Ids are chosen by the host, one for each command, so that any number of commands run at the
//! same time. There is no frame for files: a file is put by `cat > PATH` with input and got by `cat PATH`.

use std::io::{self, Read, Write};

/// First thing an agent says; a change of the frames changes it.
pub const HELLO: &[u8] = b"lab agent 1";

/// Longest accepted frame in bytes, the length field not counted.
pub const MAX_FRAME_BYTES: usize = 1 << 20;

/// Payload bytes of one data frame that the two sides send.
pub const CHUNK_BYTES: usize = 32 << 10;

const HEADER_BYTES: usize = 5;

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

/// One frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Message {
    /// Agent: it is there; [`HELLO`].
    Hello(Vec<u8>),
    /// Host: start a command, the program first.
    Exec(u32, Vec<String>),
    /// Host: bytes for the command's standard input.
    Stdin(u32, Vec<u8>),
    /// Host: end of the standard input.
    StdinEnd(u32),
    /// Host: send this signal to the command and everything it started.
    Signal(u32, i32),
    /// Agent: bytes of the standard output.
    Stdout(u32, Vec<u8>),
    /// Agent: bytes of the standard error output.
    Stderr(u32, Vec<u8>),
    /// Agent: the command ended.
    Exit(u32, Status),
    /// Agent: the command could not be started.
    Failed(u32, String),
}

impl Message {
    /// Writes the frame in one `write`.
    pub fn write(&self, output: &mut impl Write) -> io::Result<()> {
        let (kind, id, payload) = self.parts();
        let length = u32::try_from(HEADER_BYTES + payload.len()).map_err(|_| invalid("frame too long".into()))?;
        let mut frame = Vec::with_capacity(payload.len() + 4 + HEADER_BYTES);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.push(kind);
        frame.extend_from_slice(&id.to_le_bytes());
        frame.extend_from_slice(&payload);
        output.write_all(&frame)?;
        output.flush()
    }

    /// Reads one frame; `None` at an end of the stream between two frames.
    ///
    /// # Errors
    /// `InvalidData` for a frame that makes no sense, `UnexpectedEof` for an end within a frame.
    pub fn read(input: &mut impl Read) -> io::Result<Option<Message>> {
        let mut length = [0; 4];
        if !read_or_end(input, &mut length)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes(length) as usize;
        if !(HEADER_BYTES..=MAX_FRAME_BYTES).contains(&length) {
            return Err(invalid(format!("frame of {length} bytes")));
        }
        let mut frame = vec![0; length];
        input.read_exact(&mut frame)?;
        let id = u32::from_le_bytes([frame[1], frame[2], frame[3], frame[4]]);
        Message::from_parts(frame[0], id, frame.split_off(HEADER_BYTES)).map(Some)
    }

    fn parts(&self) -> (u8, u32, Vec<u8>) {
        match self {
            Message::Hello(text) => (b'H', 0, text.clone()),
            Message::Exec(id, arguments) => (b'X', *id, arguments.join("\0").into_bytes()),
            Message::Stdin(id, data) => (b'i', *id, data.clone()),
            Message::StdinEnd(id) => (b'.', *id, Vec::new()),
            Message::Signal(id, signal) => (b'K', *id, signal.to_le_bytes().to_vec()),
            Message::Stdout(id, data) => (b'o', *id, data.clone()),
            Message::Stderr(id, data) => (b'e', *id, data.clone()),
            Message::Exit(id, Status::Code(code)) => (b'c', *id, code.to_le_bytes().to_vec()),
            Message::Exit(id, Status::Signal(signal)) => (b's', *id, signal.to_le_bytes().to_vec()),
            Message::Failed(id, why) => (b'F', *id, why.clone().into_bytes()),
        }
    }

    fn from_parts(kind: u8, id: u32, payload: Vec<u8>) -> io::Result<Message> {
        Ok(match kind {
            b'H' => Message::Hello(payload),
            b'X' => Message::Exec(id, text(payload)?.split('\0').map(str::to_owned).collect()),
            b'i' => Message::Stdin(id, payload),
            b'.' => Message::StdinEnd(id),
            b'K' => Message::Signal(id, number(&payload)?),
            b'o' => Message::Stdout(id, payload),
            b'e' => Message::Stderr(id, payload),
            b'c' => Message::Exit(id, Status::Code(number(&payload)?)),
            b's' => Message::Exit(id, Status::Signal(number(&payload)?)),
            b'F' => Message::Failed(id, text(payload)?),
            other => return Err(invalid(format!("frame of unknown kind {other:#04x}"))),
        })
    }
}

/// Fills `buffer`; `false` when the stream ends before its first byte.
fn read_or_end(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < buffer.len() {
        match input.read(&mut buffer[filled..]) {
            Ok(0) if filled == 0 => return Ok(false),
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => (),
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn number(payload: &[u8]) -> io::Result<i32> {
    payload.try_into().map(i32::from_le_bytes).map_err(|_| invalid(format!("number of {} bytes", payload.len())))
}

fn text(payload: Vec<u8>) -> io::Result<String> {
    String::from_utf8(payload).map_err(|error| invalid(error.to_string()))
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_message_survives_the_way_there() {
        let messages = [
            Message::Hello(HELLO.to_vec()),
            Message::Exec(7, vec!["bash".into(), "-c".into(), "echo 'ä b'\n".into()]),
            Message::Stdin(7, vec![0, 255, 10]),
            Message::StdinEnd(7),
            Message::Signal(7, 9),
            Message::Stdout(u32::MAX, vec![1; CHUNK_BYTES]),
            Message::Stderr(8, b"no".to_vec()),
            Message::Exit(8, Status::Code(20)),
            Message::Exit(8, Status::Signal(9)),
            Message::Failed(9, "no such file".into()),
        ];
        let mut bytes = Vec::new();
        for message in &messages {
            message.write(&mut bytes).unwrap();
        }
        let mut input = bytes.as_slice();
        for message in &messages {
            assert_eq!(Message::read(&mut input).unwrap().as_ref(), Some(message));
        }
        assert_eq!(Message::read(&mut input).unwrap(), None);
    }

    #[test]
    fn bad_frames_are_errors() {
        let cases: [(&[u8], io::ErrorKind); 6] = [
            (&[4, 0, 0, 0], io::ErrorKind::InvalidData),
            (&[0, 0, 0, 1], io::ErrorKind::InvalidData),
            (&[5, 0, 0, 0, b'?', 0, 0, 0, 0], io::ErrorKind::InvalidData),
            (&[6, 0, 0, 0, b'K', 0, 0, 0, 0, 9], io::ErrorKind::InvalidData),
            (&[5, 0], io::ErrorKind::UnexpectedEof),
            (&[5, 0, 0, 0, b'.', 0], io::ErrorKind::UnexpectedEof),
        ];
        for (bytes, kind) in cases {
            let error = Message::read(&mut { bytes }).expect_err("bad frame accepted");
            assert_eq!(error.kind(), kind, "{bytes:?}");
        }
    }
}
