//! As much of HTTP/1.1 as two servers and one client need.

use std::io::{BufRead, Error, Result, Write};

/// A request or a response, whole.
#[derive(Clone, Debug)]
pub(crate) struct Message {
    /// The first line.
    pub(crate) start: String,
    /// Without what says how long the body is, but in answers to HEAD.
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// A response.
    pub(crate) fn response(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { start: format!("HTTP/1.1 {status} Told"), headers, body: body.into() }
    }

    /// The next request of a connection, or nothing at its end. A client that waits for leave to send gets it.
    pub(super) fn read_request(reader: &mut impl BufRead, client: &mut impl Write) -> Result<Option<Self>> {
        let Some(mut message) = Self::read_head(reader)? else { return Ok(None) };
        if message.take("expect").is_some() {
            client.write_all(b"HTTP/1.1 100 Continue\r\n\r\n")?;
        }
        message.read_body(reader, false)?;
        Ok(Some(message))
    }

    /// The response to a request.
    pub(super) fn read_response(reader: &mut impl BufRead, head_only: bool) -> Result<Self> {
        let Some(mut message) = Self::read_head(reader)? else { return Err(Error::other("no answer")) };
        message.take("connection");
        let bare = [" 204 ", " 304 "].iter().any(|status| message.start.contains(status));
        if !head_only && !bare {
            message.read_body(reader, true)?;
        }
        Ok(message)
    }

    /// All before the body.
    pub(super) fn head(&self, head_only: bool) -> String {
        let mut text = format!("{}\r\n", self.start);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !head_only {
            text += &format!("content-length: {}\r\n", self.body.len());
        }
        text + "\r\n"
    }

    fn read_head(reader: &mut impl BufRead) -> Result<Option<Self>> {
        let Some(start) = line(reader)? else { return Ok(None) };
        let mut headers = Vec::new();
        while let Some(line) = line(reader)?.filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(':').ok_or_else(|| Error::other(format!("no header: {line}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Some(Self { start, headers, body: Vec::new() }))
    }

    fn read_body(&mut self, reader: &mut impl BufRead, is_response: bool) -> Result<()> {
        let length = self.take("content-length");
        if self.take("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            loop {
                let size = line(reader)?.ok_or_else(|| Error::other("a body without an end"))?;
                let size = usize::from_str_radix(size.split(';').next().unwrap_or_default().trim(), 16);
                let size = size.map_err(Error::other)?;
                if size == 0 {
                    break;
                }
                let before = self.body.len();
                self.body.resize(before + size, 0);
                reader.read_exact(&mut self.body[before..])?;
                line(reader)?;
            }
            // Trailers, and the empty line.
            while line(reader)?.is_some_and(|line| !line.is_empty()) {}
        } else if let Some(length) = length {
            self.body = vec![0; length.parse().map_err(Error::other)?];
            reader.read_exact(&mut self.body)?;
        } else if is_response {
            reader.read_to_end(&mut self.body)?;
        }
        Ok(())
    }

    /// Removes a header: its value, if it was there.
    fn take(&mut self, name: &str) -> Option<String> {
        let at = self.headers.iter().position(|(found, _)| found.eq_ignore_ascii_case(name))?;
        Some(self.headers.remove(at).1)
    }
}

/// A line without its end; nothing at the end of the connection.
fn line(reader: &mut impl BufRead) -> Result<Option<String>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()))
}
