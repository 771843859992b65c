//! QEMU's machine protocol, as much of it as the lab needs: one command, one answer, events passed over.

use anyhow::{anyhow, bail, Context, Result};
use serde_json::{json, Value};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// QEMU answers in milliseconds; a host that is busy with two emulated machines takes longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);

/// A connection to one QEMU.
pub struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Takes a connected socket and ends the negotiation phase.
    pub fn new(stream: UnixStream) -> Result<Qmp> {
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        let mut qmp = Qmp { stream: BufReader::new(stream) };
        let greeting = qmp.line()?;
        if greeting.get("QMP").is_none() {
            bail!("no QMP greeting but {greeting}");
        }
        qmp.execute("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs a command and returns what it returns.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({ "execute": command, "arguments": arguments });
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).with_context(|| format!("QMP {command}"))?;
        loop {
            let mut answer = self.line().with_context(|| format!("QMP {command}"))?;
            if let Some(error) = answer.get("error") {
                return Err(anyhow!("QMP {command}: {error}"));
            }
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
        }
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU has ended");
        }
        serde_json::from_str(&line).with_context(|| format!("QMP line {line:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A QEMU that says these lines, one for the greeting and one after each line it hears.
    fn fake(lines: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        thread::spawn(move || {
            let mut input = BufReader::new(theirs.try_clone().unwrap());
            for line in lines {
                (&theirs).write_all(format!("{line}\n").as_bytes()).unwrap();
                input.read_line(&mut String::new()).unwrap();
            }
        });
        ours
    }

    const GREETING: &str = r#"{"QMP": {"version": {}, "capabilities": []}}"#;

    #[test]
    fn events_between_command_and_answer_are_passed_over() {
        let lines = &[GREETING, r#"{"return": {}}"#, "{\"event\": \"STOP\"}\n{\"return\": {\"running\": false}}"];
        let mut qmp = Qmp::new(fake(lines)).unwrap();
        assert_eq!(qmp.execute("stop", json!({})).unwrap(), json!({ "running": false }));
    }

    #[test]
    fn an_error_names_the_command() {
        let lines =
            &[GREETING, r#"{"return": {}}"#, r#"{"error": {"class": "CommandNotFound", "desc": "no such thing"}}"#];
        let error = Qmp::new(fake(lines)).unwrap().execute("dance", json!({})).unwrap_err().to_string();
        assert!(error.contains("dance") && error.contains("no such thing"), "{error}");
    }

    #[test]
    fn something_else_on_the_socket_is_refused() {
        assert!(Qmp::new(fake(&[r#"{"hello": 1}"#])).is_err());
        assert!(Qmp::new(fake(&["SSH-2.0"])).is_err());
    }
}
