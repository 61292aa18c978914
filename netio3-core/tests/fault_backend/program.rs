//! A program that sends what it has to whenever it may, and checks all that it is told.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use bytes::Bytes;
use netio3_core::{Callbacks, ClosedReason, Completion, CompletionKind, Endpoint, Handlers, NetioStatus, NetworkBackend};

/// What is known of one connection of one side, checked while it happens.
#[derive(Default)]
pub struct Life {
    pub established: bool,
    pub closed: Option<ClosedReason>,
    pub accepted: VecDeque<Completion>,
    pub returned: usize,
    pub refused: bool,
    pub writables: usize,
    pub received: Vec<Vec<u8>>,
    /// Still to be sent, and what is done when nothing is left.
    pub to_send: VecDeque<Vec<u8>>,
    pub closes_when_done: bool,
    pub sends: usize,
}

impl Life {
    fn came_back(&mut self, completions: &[Completion]) {
        assert!(self.established && self.closed.is_none());
        for completion in completions {
            assert_eq!(self.accepted.pop_front(), Some(*completion), "not the next in send order");
            self.returned += 1;
        }
    }
}

pub type Lives = Rc<RefCell<BTreeMap<Endpoint, Life>>>;

pub fn program(lives: &Lives, echoes: bool) -> impl Callbacks + use<> {
    let [on_established, on_closed, on_data, on_completed, on_writable] = std::array::from_fn(|_| lives.clone());
    Handlers::new()
        .on_connection_established(move |backend, connection| {
            let mut lives = on_established.borrow_mut();
            let life = lives.entry(connection.endpoint).or_default();
            assert!(!std::mem::replace(&mut life.established, true));
            drop(lives);
            send_more(backend, connection.endpoint, &on_established);
        })
        .on_connection_refused(|_, _, _, reason| panic!("refused: {reason}"))
        .on_connection_closed(move |backend, endpoint, _, pending, reason| {
            let mut lives = on_closed.borrow_mut();
            let life = lives.get_mut(&endpoint).unwrap();
            life.came_back(pending);
            assert_eq!((life.accepted.len(), life.closed.replace(reason)), (0, None));
            assert_ne!(backend.send_copy(endpoint, b"late", b"", 0), Ok(NetioStatus::Ok));
        })
        .on_data(move |backend, from, _, message| {
            let mut lives = on_data.borrow_mut();
            let life = lives.get_mut(&from).unwrap();
            assert!(life.established && life.closed.is_none());
            life.received.push(message.to_vec());
            if echoes {
                life.to_send.push_back(message.to_vec());
                drop(lives);
                send_more(backend, from, &on_data);
            }
        })
        .on_send_completed(move |_, endpoint, _, completions| {
            on_completed.borrow_mut().get_mut(&endpoint).unwrap().came_back(completions);
        })
        .on_writable(move |backend, endpoint, _| {
            let mut lives = on_writable.borrow_mut();
            let life = lives.get_mut(&endpoint).unwrap();
            assert!(life.established && life.closed.is_none());
            assert!(std::mem::take(&mut life.refused), "writable without a refusal since the last");
            life.writables += 1;
            drop(lives);
            send_more(backend, endpoint, &on_writable);
        })
}

/// Sends with all families in turn until there is nothing left or a refusal comes.
fn send_more(backend: &dyn NetworkBackend, endpoint: Endpoint, lives: &Lives) {
    let mut lives = lives.borrow_mut();
    let life = lives.get_mut(&endpoint).unwrap();
    while let Some(message) = life.to_send.front() {
        let key = life.sends as u64;
        let (header, payload) = message.split_at(message.len().min(3));
        let mut completion = Completion { key, kind: CompletionKind::ZeroCopy, len: message.len() as u32 };
        let status = match life.sends % 3 {
            0 => {
                completion.kind = CompletionKind::Copy;
                backend.send_copy(endpoint, payload, header, key)
            }
            1 => backend.send(endpoint, &Bytes::copy_from_slice(payload), header, key),
            _ => match backend.take_buffer(endpoint) {
                Ok(None) => Ok(NetioStatus::NoResources),
                Ok(Some(mut buffer)) => {
                    buffer.extend_from_slice(message).unwrap();
                    (completion.key, completion.kind) = (buffer.id(), CompletionKind::Buffer);
                    backend.send_taken(endpoint, buffer).map_or_else(|unsent| unsent.outcome, |()| Ok(NetioStatus::Ok))
                }
                Err(error) => panic!("{error}"),
            },
        };
        match status {
            Ok(NetioStatus::Ok) => {
                life.accepted.push_back(completion);
                life.to_send.pop_front();
                life.sends += 1;
            }
            Ok(NetioStatus::NoResources) => {
                life.refused = true;
                return;
            }
            Ok(NetioStatus::NotConnected) => return,
            other => panic!("{other:?}"),
        }
    }
    if life.closes_when_done && life.established {
        life.closes_when_done = false;
        backend.close(endpoint).unwrap();
    }
}
