//! The receiving side's book: which processes send, over which connections, and what came.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::args::{Backend, MAX_SIZE, Mode};
use crate::check::StreamCheck;
use crate::control::{Control, Purpose, Start, Tally, VERSION};
use crate::report::{Report, complain, plural};

/// What came from all senders.
pub struct Ledger {
    purpose: Purpose,
    /// Whether every byte is checked even if the sender does not ask for it; messages always follow the pattern.
    verify: bool,
    /// How many senders are awaited, if it is not any number.
    senders: Option<u64>,
    sessions: HashMap<u64, Session>,
    /// Senders that ended.
    pub ended: u64,
    /// Connections that ended without the sender's goodbye.
    pub failed: u64,
    /// Which of them was the first, and why it ended.
    why: Option<String>,
    /// Connections that were announced and never came.
    missing: u64,
    /// Connections that took part.
    pub connections: u32,
    /// What came over connections that ended or said `Done`.
    pub total: Tally,
    /// Bytes of each message, as announced last.
    pub size: usize,
    /// How they are sent, as announced last.
    pub mode: Option<Mode>,
    /// Between these lies the time of the report.
    first: Option<Instant>,
    last: Option<Instant>,
}

/// A process that sends.
struct Session {
    connections: u32,
    /// When the latest of its connections was welcome, upon which it begins.
    began: Instant,
    open: u32,
    ended: u32,
    failed: bool,
    /// It had no connection when last looked at.
    is_absent: bool,
}

/// One connection of the receiving side.
#[derive(Default)]
pub struct Incoming {
    check: Option<StreamCheck>,
    start: Option<Start>,
    done: bool,
    /// What is wrong with what came.
    why: Option<String>,
}

/// What to do after a message that was not a measured one.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// Send this.
    Send(Vec<u8>),
    /// Send this, then close the connection.
    Refuse(Vec<u8>),
    /// It was none of ours, or the conversation makes no sense: close the connection.
    HangUp,
}

impl Ledger {
    /// An empty book for connections of one purpose, of so many senders if that is known.
    pub fn new(purpose: Purpose, verify: bool, senders: Option<u64>) -> Self {
        Self {
            purpose,
            verify,
            senders,
            sessions: HashMap::new(),
            ended: 0,
            failed: 0,
            why: None,
            missing: 0,
            connections: 0,
            total: Tally::default(),
            size: 0,
            mode: None,
            first: None,
            last: None,
        }
    }

    /// Whether all senders that were awaited have ended.
    pub fn is_over(&self) -> bool {
        self.senders.is_some_and(|senders| self.ended >= senders)
    }

    /// From when all connections of the first sender were welcome to the last acknowledgement.
    pub fn time(&self) -> Duration {
        match (self.first, self.last) {
            (Some(first), Some(last)) => last.saturating_duration_since(first),
            _ => Duration::ZERO,
        }
    }

    /// The report of a `recv` or `echo`.
    pub fn report(&self, backend: Backend, error: Option<String>) -> Report {
        let mut report = Report::new(self.purpose.roles()[0], backend, &self.total, self.time());
        report.mode = self.mode;
        report.size = self.size;
        report.connections = self.connections;
        report.error = match (self.failed, self.missing, error) {
            (0, 0, error) => error,
            (0, missing, _) => Some(format!("{} that had been announced never came", plural(missing, "connection"))),
            (failed, _, cause) => {
                let causes: String = self.why.iter().chain(&cause).map(|cause| format!(": {cause}")).collect();
                Some(format!("{} ended without a goodbye{causes}", plural(failed, "connection")))
            }
        };
        report
    }

    /// Where any number of senders may come, prints a report once all have gone, and starts afresh.
    pub fn print_round(&mut self, backend: Backend, json: bool) {
        if self.senders.is_none() && self.ended > 0 && self.sessions.is_empty() {
            let report = self.report(backend, None);
            report.print(json);
            if let Err(failure) = report.verdict() {
                complain(failure);
            }
            *self = Self::new(self.purpose, self.verify, None);
        }
    }

    /// To be called at times: senders that have had no connection since the last time will not come back.
    pub fn look_for_absent(&mut self) {
        let gone: Vec<u64> = self.sessions.iter().filter(|(_, it)| it.is_absent).map(|(name, _)| *name).collect();
        gone.into_iter().for_each(|session| self.end(session));
        self.sessions.values_mut().for_each(|session| session.is_absent = session.open == 0);
    }

    /// Whether a sender has no connection now, and announced more.
    pub fn has_absent(&self) -> bool {
        self.sessions.values().any(|session| session.open == 0)
    }

    fn end(&mut self, session: u64) {
        if let Some(session) = self.sessions.remove(&session) {
            self.ended += 1;
            self.missing += u64::from(session.connections.saturating_sub(session.ended));
        }
    }

    fn account(&mut self, check: &StreamCheck, start: &Start, sent: Option<u64>) -> Tally {
        let tally = check.tally(sent);
        self.total.add(&tally);
        self.first = self.first.into_iter().chain(self.sessions.get(&start.session).map(|session| session.began)).min();
        self.last = Some(Instant::now());
        tally
    }
}

impl Incoming {
    /// Counts a message if it is a measured one; all others go to [`control`](Self::control).
    #[inline]
    pub fn observe(&mut self, message: &[u8]) -> bool {
        match &mut self.check {
            Some(check) if check.size() == message.len() => {
                check.observe(message);
                true
            }
            _ => false,
        }
    }

    /// What was announced.
    pub fn start(&self) -> Option<&Start> {
        self.start.as_ref()
    }

    /// Whether the sender said goodbye.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Understands a message that is not a measured one.
    pub fn control(&mut self, ledger: &mut Ledger, message: &[u8]) -> Answer {
        match (Control::decode(message), &mut self.check, &self.start) {
            (Some(Control::Start(start)), None, _) => self.begin(ledger, start),
            (Some(Control::Done { sent }), Some(check), Some(start)) if !self.done => {
                self.done = true;
                Answer::Send(Control::Tally(ledger.account(check, start, Some(sent))).encode(start.size))
            }
            (None, Some(check), _) if !self.done => {
                self.why = Some(check.count_mutilated(message.len()));
                Answer::HangUp
            }
            _ => Answer::HangUp,
        }
    }

    fn begin(&mut self, ledger: &mut Ledger, start: Start) -> Answer {
        let refuse = |why: String| Answer::Refuse(Control::Refused { why }.encode(start.size));
        if start.version != VERSION {
            return refuse(format!("this side has version {VERSION} of the conversation, the other {}", start.version));
        }
        if start.purpose != ledger.purpose {
            let [here, there] = ledger.purpose.roles();
            return refuse(format!("what listens there is `{here}`, made for `{there}`"));
        }
        if start.size > MAX_SIZE || start.connections == 0 {
            return refuse("the announcement makes no sense".into());
        }
        // Those that are here already are counted to their ends.
        let is_known = ledger.sessions.contains_key(&start.session);
        let taken = ledger.ended + ledger.sessions.len() as u64;
        if let Some(senders) = ledger.senders.filter(|senders| !is_known && taken >= *senders) {
            let [here, there] = ledger.purpose.roles();
            return refuse(format!("what listens there is `{here}`, started for {} only", plural(senders, &format!("`{there}`"))));
        }
        let began = Instant::now();
        let fresh = || Session { connections: start.connections, began, open: 0, ended: 0, failed: false, is_absent: false };
        let session = ledger.sessions.entry(start.session).or_insert_with(fresh);
        session.began = began;
        session.open += 1;
        session.is_absent = false;
        ledger.connections += 1;
        ledger.size = start.size;
        ledger.mode = start.mode;
        self.check = Some(StreamCheck::new(start.size, start.stream, start.verify || ledger.verify));
        let welcome = Control::Welcome.encode(start.size);
        self.start = Some(start);
        Answer::Send(welcome)
    }

    /// The connection has ended, for this reason if it is known.
    pub fn close(self, ledger: &mut Ledger, why: Option<String>) {
        let (Some(check), Some(start)) = (self.check, self.start) else {
            return;
        };
        if !self.done {
            ledger.failed += 1;
            if ledger.why.is_none() {
                let after = start.count.map(|count| format!("after {} of {}", check.received(), plural(count, "message")));
                let parts: Vec<String> = self.why.or(why).into_iter().chain(after).collect();
                ledger.why = (!parts.is_empty()).then(|| parts.join(", "));
            }
            // Only those that others came behind are known to have been sent.
            ledger.account(&check, &start, Some(check.reached()));
        }
        let Some(session) = ledger.sessions.get_mut(&start.session) else {
            return;
        };
        session.open -= 1;
        session.ended += 1;
        session.failed |= !self.done;
        // Nobody says goodbye before all that send have come, but who has a connection for each round trip.
        let may_come_back = start.purpose == Purpose::RoundTrips && !session.failed;
        if session.ended >= session.connections || session.open == 0 && !may_come_back {
            ledger.end(start.session);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::{Content, Layout};

    fn start(stream: u16, connections: u32) -> Start {
        Start {
            version: VERSION,
            purpose: Purpose::Stream,
            session: 7,
            connections,
            stream,
            size: 8,
            count: Some(3),
            mode: None,
            verify: true,
        }
    }

    fn connection(ledger: &mut Ledger, start: Start) -> Incoming {
        let mut incoming = Incoming::default();
        let hello = Control::Start(start).encode(8);
        assert!(!incoming.observe(&hello));
        assert_eq!(incoming.control(ledger, &hello), Answer::Send(Control::Welcome.encode(8)));
        incoming
    }

    fn send_three(incoming: &mut Incoming, stream: u16) {
        let layout = Layout { size: 8, header: None, pieces: 1 };
        let content = Content::new(&layout).of_stream(stream);
        for sequence in 0..3 {
            let mut message = [0; 8];
            content.write_head(sequence, &mut message);
            assert!(incoming.observe(&message));
        }
    }

    #[test]
    fn a_sender_ends_with_the_last_of_its_connections() {
        let mut ledger = Ledger::new(Purpose::Stream, false, None);
        let mut both = [0, 1].map(|stream| connection(&mut ledger, start(stream, 2)));
        for (stream, incoming) in both.iter_mut().enumerate() {
            send_three(incoming, stream as u16);
            let Answer::Send(reply) = incoming.control(&mut ledger, &Control::Done { sent: 3 }.encode(8)) else { panic!() };
            let tally = Tally { messages: 3, bytes: 24, verified: 3, ..Default::default() };
            assert_eq!(Control::decode(&reply), Some(Control::Tally(tally)));
        }
        let [one, two] = both;
        one.close(&mut ledger, None);
        assert_eq!((ledger.ended, ledger.sessions.len()), (0, 1));
        two.close(&mut ledger, None);
        assert_eq!((ledger.ended, ledger.failed, ledger.total.messages, ledger.connections), (1, 0, 6, 2));
    }

    #[test]
    fn a_sender_that_dies_has_failed_and_lost() {
        let mut ledger = Ledger::new(Purpose::Stream, false, None);
        let mut incoming = connection(&mut ledger, start(0, 2));
        incoming.observe(&[0; 8]);
        // The second is missing.
        incoming.observe(&[2, 0, 0, 0, 0, 0, 0, 0]);
        incoming.close(&mut ledger, Some("the peer is gone".into()));
        assert_eq!((ledger.ended, ledger.failed, ledger.total.lost, ledger.sessions.len()), (1, 1, 1, 0));
        let error = ledger.report(Backend::Raw, None).error.expect("it failed");
        assert_eq!(error, "1 connection ended without a goodbye: the peer is gone, after 2 of 3 messages");
    }

    #[test]
    fn a_sender_of_which_a_part_never_came_has_failed() {
        let mut ledger = Ledger::new(Purpose::Stream, false, Some(1));
        let mut incoming = connection(&mut ledger, start(0, 3));
        send_three(&mut incoming, 0);
        incoming.control(&mut ledger, &Control::Done { sent: 3 }.encode(8));
        incoming.close(&mut ledger, None);
        assert!(ledger.is_over() && ledger.sessions.is_empty());
        let report = ledger.report(Backend::Raw, None);
        assert_eq!(report.verdict().unwrap_err().to_string(), "2 connections that had been announced never came");
    }

    #[test]
    fn a_message_of_another_length_is_corrupt_and_named() {
        for len in [0, 7, 9, 100] {
            let mut ledger = Ledger::new(Purpose::Stream, false, None);
            let mut incoming = connection(&mut ledger, start(0, 1));
            incoming.observe(&[0; 8]);
            let message = vec![0; len];
            assert!(!incoming.observe(&message));
            assert_eq!(incoming.control(&mut ledger, &message), Answer::HangUp);
            incoming.close(&mut ledger, Some("closed by this side".into()));
            let report = ledger.report(Backend::Raw, None);
            let why = format!("a message of {len} bytes came where 8 were announced, after 2 of 3 messages");
            let expected = format!("1 connection ended without a goodbye: {why}");
            assert_eq!((report.error, report.corrupted, report.lost), (Some(expected), 1, 0));
        }
    }

    #[test]
    fn who_comes_back_for_each_round_trip_does_so_soon() {
        let mut ledger = Ledger::new(Purpose::RoundTrips, false, Some(1));
        let round_trip = |ledger: &mut Ledger, stream| {
            let mut incoming = connection(ledger, Start { purpose: Purpose::RoundTrips, ..start(stream, 3) });
            ledger.look_for_absent();
            incoming.control(ledger, &Control::Done { sent: 0 }.encode(8));
            incoming.close(ledger, None);
        };
        round_trip(&mut ledger, 0);
        ledger.look_for_absent();
        round_trip(&mut ledger, 1);
        assert!(!ledger.is_over() && ledger.has_absent());
        ledger.look_for_absent();
        assert!(!ledger.is_over());
        ledger.look_for_absent();
        assert!(ledger.is_over() && !ledger.has_absent());
        let report = ledger.report(Backend::Raw, None);
        assert_eq!(report.verdict().unwrap_err().to_string(), "1 connection that had been announced never came");
    }

    #[test]
    fn senders_beyond_the_number_are_refused() {
        let mut ledger = Ledger::new(Purpose::Stream, false, Some(1));
        let mut first = connection(&mut ledger, start(0, 2));
        let other = Control::Start(Start { session: 8, ..start(0, 1) }).encode(8);
        let refused = |ledger: &mut Ledger| matches!(Incoming::default().control(ledger, &other), Answer::Refuse(_));
        assert!(refused(&mut ledger));
        let mut second = connection(&mut ledger, start(1, 2));
        for (stream, incoming) in [&mut first, &mut second].into_iter().enumerate() {
            send_three(incoming, stream as u16);
            incoming.control(&mut ledger, &Control::Done { sent: 3 }.encode(8));
        }
        first.close(&mut ledger, None);
        assert!(!ledger.is_over() && refused(&mut ledger));
        second.close(&mut ledger, None);
        assert!(ledger.is_over() && refused(&mut ledger));
        assert_eq!((ledger.ended, ledger.connections, ledger.total.messages), (1, 2, 6));
    }

    #[test]
    fn strangers_and_wrong_purposes_are_turned_away() {
        let mut ledger = Ledger::new(Purpose::Stream, false, None);
        assert_eq!(Incoming::default().control(&mut ledger, b"GET / HTTP/1.1"), Answer::HangUp);
        let ping = Start { purpose: Purpose::RoundTrips, ..start(0, 1) };
        let answer = Incoming::default().control(&mut ledger, &Control::Start(ping).encode(8));
        let Answer::Refuse(reply) = answer else { panic!("{answer:?}") };
        assert!(String::from_utf8(reply).unwrap().contains("made for `send`"));
        Incoming::default().close(&mut ledger, None);
        assert_eq!((ledger.ended, ledger.connections), (0, 0));
    }
}
