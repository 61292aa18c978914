//! `send` over bare libfabric calls.

use std::time::Instant;

use crate::args::{Backend, Common, Mode, SendArgs};
use crate::begin::begin;
use crate::control::{Control, Tally};
use crate::failure::Failure;
use crate::plan::{Plan, dial};
use crate::raw_fabric::client::Client;
use crate::raw_fabric::net::STALL_DEADLINE;
use crate::raw_fabric::outbox::COPY_UP_TO;
use crate::report::Report;

/// Sends, and gives the report.
pub fn send(common: &Common, args: &SendArgs) -> Result<Report, Failure> {
    let addresses = dial(args.connect.as_deref())?;
    let mode = args.mode.unwrap_or(if args.size <= COPY_UP_TO { Mode::Copy } else { Mode::ZeroCopy });
    let plan = Plan::new(common, args, mode)?;
    let mut client = Client::new(common, &addresses, &plan, mode, "recv")?;
    let mut tallies = vec![None; client.links.len()];
    let began = begin();
    let deadline = args.amount.duration.map(|duration| began + duration);
    let error = transfer(&mut client, args.size, deadline, &mut tallies).err();
    let seconds = began.elapsed();

    let mut total = Tally::default();
    for (link, tally) in client.links.iter().zip(&tallies) {
        match tally {
            Some(tally) => total.add(tally),
            None => total.lost += link.outbox.as_ref().map_or(0, |outbox| outbox.sent()),
        }
    }
    let mut report = Report::new("send", Backend::RawFabric, &total, seconds);
    report.mode = Some(client.mode);
    report.size = args.size;
    report.connections = plan.connections;
    report.broken_by(error);
    client.hang_up();
    Ok(report)
}

/// Sends on all connections until the other side has counted everything.
fn transfer(client: &mut Client, size: usize, deadline: Option<Instant>, tallies: &mut [Option<Tally>]) -> Result<(), String> {
    let mut deadline = deadline;
    let mut said = vec![false; tallies.len()];
    let mut left = tallies.len();
    client.pump_all()?;
    loop {
        for at in 0..client.touched().len() {
            let index = client.touched()[at];
            let link = &mut client.links[index];
            let Some(outbox) = link.outbox.as_ref().filter(|outbox| outbox.is_finished() && !said[index]) else { continue };
            said[index] = true;
            link.say(Control::Done { sent: outbox.sent() }.encode(size));
            link.pump()?;
        }
        if left == 0 {
            return Ok(());
        }
        client.turn(STALL_DEADLINE, |_| {})?;
        for (index, control) in client.controls.drain(..) {
            match control {
                Some(Control::Tally(tally)) if said[index] && tallies[index].is_none() => {
                    tallies[index] = Some(tally);
                    left -= 1;
                }
                _ => return Err("the receiver answered out of turn".into()),
            }
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            deadline = None;
            client.links.iter_mut().filter_map(|link| link.outbox.as_mut()).for_each(|outbox| outbox.stop());
            client.pump_all()?;
        } else {
            client.pump()?;
        }
    }
}
