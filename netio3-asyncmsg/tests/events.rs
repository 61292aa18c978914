//! What a backend tells to `tracing`.

mod util;

use std::fmt::{Debug, Write};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use netio3_core::{AcceptFilter, ConnectionParameters, ConnectionParametersRecv, EndPointAddress, NetworkConfig, RefusedReason};
use netio3_evloop::EpollEventLoop;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};
use util::{config, until};

/// Notes events of lifecycles, each as its level, message and fields.
#[derive(Clone, Default)]
struct Notes(Arc<Mutex<Vec<String>>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = if field.name() == "message" { write!(self.0, "{value:?};") } else { write!(self.0, " {}={value:?}", field.name()) };
        text.expect("a string takes everything");
    }
}

impl Subscriber for Notes {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG && metadata.target().starts_with("netio3_core")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(format!("{} ", event.metadata().level()));
        event.record(&mut text);
        self.0.lock().expect("nobody panicked").push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Notes {
    /// How many events there are with all of these words.
    fn count(&self, words: &[&str]) -> usize {
        let notes = self.0.lock().expect("nobody panicked");
        notes.iter().filter(|note| words.iter().all(|word| note.contains(word))).count()
    }
}

#[test]
fn listeners_a_shutdown_and_peers_turned_away_are_told_to_tracing() {
    let notes = Notes::default();
    let _here = tracing::subscriber::set_default(notes.clone());
    let ev = EpollEventLoop::new().expect("descriptors are left");
    let server = util::node_with(&ev, NetworkConfig { max_connections: 1, ..config() });
    let open = server.listen();
    let filtered = ConnectionParametersRecv { accept: AcceptFilter::new(|_| false), ..Default::default() };
    let filtered = server.backend.open_listen_endpoint(&EndPointAddress::localhost(0), &filtered).expect("a port is free");
    for address in [open, filtered] {
        assert_eq!(notes.count(&["INFO", "listener opened", &format!("listener={address}")]), 1);
    }
    let client = util::node(&ev);
    let connect = |to: &EndPointAddress| client.backend.connect(to, &ConnectionParameters::default()).expect("a connection is started");
    connect(&open);
    until(&ev, "it is established", || client.established().len() == 1 && server.established().len() == 1);
    for (to, reason, word) in [(open, RefusedReason::Limit, "Limit"), (filtered, RefusedReason::Filter, "Filter")] {
        let refused = connect(&to);
        until(&ev, "it is refused", || client.refused(refused).is_some());
        assert_eq!(client.refused(refused), Some(reason));
        assert_eq!(notes.count(&["DEBUG", "turned away", &format!("reason={word}"), &format!("listener={to}")]), 1);
    }
    server.backend.close_listen_endpoint(&filtered).expect("it is there");
    assert_eq!(notes.count(&["INFO", "listener closed", &format!("listener={filtered}")]), 1);
    server.backend.shutdown(Duration::from_secs(600));
    assert_eq!(notes.count(&["INFO", "shutdown begun"]), 1);
    assert_eq!(notes.count(&["INFO", "listener closed", &format!("listener={open}")]), 1);
    until(&ev, "all are gone", || server.backend.connections().is_empty());
    assert_eq!(notes.count(&["INFO", "connection established"]), 2);
}
