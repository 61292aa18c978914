//! Where a connection is in the protocol, apart from sockets and clocks.

/// The states of hello and goodbye on one connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) stage: Stage,
    said_goodbye: bool,
    heard_goodbye: bool,
}

/// How far the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stage {
    /// The system is still connecting.
    Connecting,
    /// Connected; the peer's hello has not come.
    Greeting,
    /// Both hellos are accepted.
    Open,
}

impl Session {
    pub(crate) fn dialing() -> Self {
        Self { stage: Stage::Connecting, said_goodbye: false, heard_goodbye: false }
    }

    pub(crate) fn accepted() -> Self {
        Self { stage: Stage::Greeting, ..Self::dialing() }
    }

    /// This side's goodbye is queued: nothing is queued after it. `false` when it was before.
    pub(crate) fn say_goodbye(&mut self) -> bool {
        self.stage == Stage::Open && !std::mem::replace(&mut self.said_goodbye, true)
    }

    /// The peer's goodbye arrived: nothing arrives after it.
    pub(crate) fn hear_goodbye(&mut self) {
        self.heard_goodbye = true;
    }

    pub(crate) fn has_said_goodbye(self) -> bool {
        self.said_goodbye
    }

    pub(crate) fn has_heard_goodbye(self) -> bool {
        self.heard_goodbye
    }

    /// Whether both sides have said goodbye: with everything written, the connection is done.
    pub(crate) fn is_agreed(self) -> bool {
        self.said_goodbye && self.heard_goodbye
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open() -> Session {
        Session { stage: Stage::Open, ..Session::dialing() }
    }

    #[test]
    fn either_side_may_say_goodbye_first() {
        let mut first = open();
        assert!(first.say_goodbye());
        assert!(!first.say_goodbye(), "once");
        assert!(!first.is_agreed());
        first.hear_goodbye();
        let mut second = open();
        second.hear_goodbye();
        assert!(!second.is_agreed());
        assert!(second.say_goodbye());
        assert!(first.is_agreed() && second.is_agreed());
    }

    #[test]
    fn there_is_no_goodbye_before_the_hellos() {
        assert!(!Session::dialing().say_goodbye());
        assert!(!Session::accepted().say_goodbye());
    }
}
