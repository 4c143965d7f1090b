//! The header block of a stored message, as the server gives it out raw: whether the NATS client can read it. nats-server looks
//! at no header that is not its own, so a publisher may store any bytes. The client (async-nats 0.51) resets its connection at
//! most of what is refused here, and its connection task ends in a panic at a carriage return inside a value.

use super::header_names::canonical;
use super::headers::Headers;

/// Why a message cannot be read by the NATS client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum UnreadableMessage {
    /// The subject has white space beyond ASCII, or bytes that are no text (the server shows these as U+FFFD).
    #[error("its subject is not plain text")]
    Subject,
    /// The block is not UTF-8.
    #[error("its header block is not UTF-8")]
    NotText,
    /// The block does not begin with the version.
    #[error("its header block does not begin with NATS/1.0")]
    Version,
    /// The first line carries a status, which only the server sends: a client takes the message for an answer of the server.
    #[error("its header block carries a status, as answers of the server do")]
    Status,
    /// A line has no colon.
    #[error("line {line} of its header block has no colon")]
    NoColon {
        /// Its number; 1 is the version.
        line: usize,
    },
    /// A name has a character that names may not have.
    #[error("the name in line {line} of its header block is not of visible ASCII characters")]
    Name {
        /// Its number; 1 is the version.
        line: usize,
    },
    /// A value has a carriage return inside.
    #[error("the value in line {line} of its header block has a carriage return inside")]
    CarriageReturn {
        /// Its number; 1 is the version.
        line: usize,
    },
}

/// The headers of a message of this subject, as the client reads them; an empty block means that there are none.
///
/// # Errors
/// [`UnreadableMessage`] when the client cannot read it.
pub fn parse(subject: &str, block: &[u8]) -> Result<Headers, UnreadableMessage> {
    if subject.contains(|c: char| c.is_whitespace() || c == char::REPLACEMENT_CHARACTER) {
        return Err(UnreadableMessage::Subject);
    }
    let mut headers = Headers::new();
    if block.is_empty() {
        return Ok(headers);
    }
    let block = std::str::from_utf8(block).map_err(|_| UnreadableMessage::NotText)?;
    let mut lines = (1..).zip(block.lines()).peekable();
    let version = lines.next().and_then(|(_, line)| line.strip_prefix("NATS/1.0"));
    if !version.ok_or(UnreadableMessage::Version)?.trim().is_empty() {
        return Err(UnreadableMessage::Status);
    }
    while let Some((line, text)) = lines.next() {
        if text.is_empty() {
            continue;
        }
        let (name, value) = text.split_once(':').ok_or(UnreadableMessage::NoColon { line })?;
        if !name.chars().all(|c| c.is_ascii_graphic()) {
            return Err(UnreadableMessage::Name { line });
        }
        let mut value = value.trim_start().to_owned();
        // A line that begins with white space goes on with the value.
        while let Some((_, more)) = lines.next_if(|(_, text)| text.starts_with(char::is_whitespace)) {
            value.push_str(more);
        }
        value.truncate(value.trim_end().len());
        if value.contains('\r') {
            return Err(UnreadableMessage::CarriageReturn { line });
        }
        headers.push((canonical(name).to_owned(), value));
    }
    Ok(headers)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(block: &[u8]) -> Result<(), UnreadableMessage> {
        parse("tasks.default.square", block).map(drop)
    }

    #[test]
    fn what_the_client_reads_is_read() {
        for block in [
            &b""[..],
            b"NATS/1.0\r\n\r\n",
            b"NATS/1.0 \r\nA: b\r\n\r\n",
            b"NATS/1.0\r\nA:\r\n: empty name\r\n\r\n",
            b"NATS/1.0\r\nA: caf\xc3\xa9 \r\r\nB: x\r\n  folded\r\n\r\n",
            b"NATS/1.0\nA: b\n\nC: d",
        ] {
            assert_eq!(checked(block), Ok(()), "{:?}", String::from_utf8_lossy(block));
        }
        let folded = parse("s", b"NATS/1.0\r\nA: caf\xc3\xa9 \r\r\nB: x\r\n  folded \r\n\r\n").unwrap();
        assert_eq!(folded, [("A".to_owned(), "café".to_owned()), ("B".to_owned(), "x  folded".to_owned())]);
    }

    #[test]
    fn what_the_client_cannot_read_is_named() {
        use UnreadableMessage::{CarriageReturn, Name, NoColon, NotText, Status, Version};
        for (block, wanted) in [
            (&b"NATS/1.0\r\nA: caf\xe9\r\n\r\n"[..], NotText),
            (b"HELLO\r\n\r\n", Version),
            (b"\r\n", Version),
            (b"NATS/1.0 503\r\n\r\n", Status),
            (b"NATS/1.0 409 Consumer Deleted\r\n\r\n", Status),
            (b"NATS/1.0abc\r\n\r\n", Status),
            (b"NATS/1.0\r\nA: b\r\ngarbage\r\n\r\n", NoColon { line: 3 }),
            (b"NATS/1.0\r\na b: c\r\n\r\n", Name { line: 2 }),
            (b"NATS/1.0\r\nn\xc3\xa4me: c\r\n\r\n", Name { line: 2 }),
            (b"NATS/1.0\r\n A: begins with white space\r\n\r\n", Name { line: 2 }),
            (b"NATS/1.0\r\nA: a\rb\r\n\r\n", CarriageReturn { line: 2 }),
            (b"NATS/1.0\r\nA: a\r\n b\rc\r\n\r\n", CarriageReturn { line: 2 }),
        ] {
            assert_eq!(checked(block), Err(wanted), "{:?}", String::from_utf8_lossy(block));
        }
        for subject in ["tasks.default.\u{fffd}\u{fffd}", "tasks.default.a\u{a0}b"] {
            assert_eq!(parse(subject, b""), Err(UnreadableMessage::Subject), "{subject}");
        }
    }
}
