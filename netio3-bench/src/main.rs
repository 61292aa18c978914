//! `netio3-bench`: measures netio3 on a testbed, beside bare sockets, and checks that every message arrived.
//!
//! Exit status: 0 when everything was delivered and told, 1 when not, 2 for bad arguments or no connection.
#![cfg_attr(not(feature = "rdma"), forbid(unsafe_code))]
#![deny(unsafe_code)]

mod args;
mod begin;
mod check;
mod control;
#[cfg(feature = "rdma")]
mod fabric_info;
mod failure;
mod info;
mod ledger;
mod library;
mod limits;
mod pattern;
mod peers;
mod plan;
mod raw;
#[cfg(feature = "rdma")]
mod raw_fabric;
mod report;
mod tour;

use std::io;
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use crate::args::{Backend, Cli, Command, Common, PingArgs, SendArgs};
use crate::failure::Failure;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) => {
            report::written(error.print());
            return status();
        }
        Err(error) => return fail(&Failure::NoConnection(one_line(&error.to_string()))),
    };
    match run(&cli) {
        Ok(()) => status(),
        Err(failure) => fail(&failure),
    }
}

/// The exit status when nothing has failed but, possibly, telling so.
fn status() -> ExitCode {
    if report::is_unwritten() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn fail(failure: &Failure) -> ExitCode {
    report::complain(failure);
    ExitCode::from(failure.status())
}

/// What is wrong, without the usage that clap prints below.
fn one_line(message: &str) -> String {
    let first = message.split("\n\n").next().unwrap_or_default();
    let words: Vec<&str> = first.trim_start_matches("error: ").split_whitespace().collect();
    format!("{} (--help tells more)", words.join(" "))
}

fn run(cli: &Cli) -> Result<(), Failure> {
    let common = &cli.common;
    // Before anything takes its time: whoever started this process may be gone by then.
    common.parent.map_or(Ok(()), begin::end_with)?;
    // A full or closed standard error is none of the measurement's concerns.
    tracing_subscriber::fmt().with_max_level(common.log).with_writer(io::stderr).log_internal_errors(false).init();
    refuse_what_is_ignored(cli)?;
    let Some(command) = &cli.command else {
        return tour::tour(common);
    };
    match command {
        Command::Info => return info::info(common),
        Command::Limits(args) => return limits::limits(common, args),
        Command::StayAwake => {
            pin(common)?;
            limits::stay_awake();
            return Ok(());
        }
        Command::Recv(_) | Command::Send(_) | Command::Echo(_) | Command::Ping(_) => {}
    }
    let backend = common.backend();
    info::usable(backend).map_err(Failure::NoConnection)?;
    pin(common)?;
    allow_descriptors();
    if common.held {
        begin::hold();
    }
    let report = match (command, backend) {
        (Command::Recv(args), Backend::Raw) => raw::recv(common, args)?,
        (Command::Send(args), Backend::Raw) => raw::send(common, args)?,
        (Command::Echo(args), Backend::Raw) => raw::echo(common, args)?,
        (Command::Ping(args), Backend::Raw) => raw::ping(common, args)?,
        #[cfg(feature = "rdma")]
        (Command::Recv(args), Backend::RawFabric) => raw_fabric::recv(common, args)?,
        #[cfg(feature = "rdma")]
        (Command::Send(args), Backend::RawFabric) => raw_fabric::send(common, args)?,
        #[cfg(feature = "rdma")]
        (Command::Echo(args), Backend::RawFabric) => raw_fabric::echo(common, args)?,
        #[cfg(feature = "rdma")]
        (Command::Ping(args), Backend::RawFabric) => raw_fabric::ping(common, args)?,
        (Command::Recv(args), _) => library::recv(common, backend, args)?,
        (Command::Send(args), _) => library::send(common, backend, args)?,
        (Command::Echo(args), _) => library::echo(common, backend, args)?,
        (Command::Ping(args), _) => library::ping(common, backend, args)?,
        (Command::Info | Command::Limits(_) | Command::StayAwake, _) => return Ok(()),
    };
    report.print(common.json);
    report.verdict()
}

/// Refuses options that what is to be done would take no notice of, and measure something else than was meant.
fn refuse_what_is_ignored(cli: &Cli) -> Result<(), Failure> {
    let common = &cli.common;
    let is_transfer = matches!(cli.command, Some(Command::Recv(_) | Command::Send(_) | Command::Echo(_) | Command::Ping(_)));
    let has_provider = match (&cli.command, common.backend) {
        (Some(Command::Info | Command::StayAwake), _) => false,
        (_, Some(backend)) => backend.is_of_libfabric(),
        // The tour and the limits measure all that there is.
        (_, None) => !is_transfer,
    };
    let has_address =
        matches!(cli.command, Some(Command::Send(SendArgs { connect: Some(_), .. }) | Command::Ping(PingArgs { connect: Some(_), .. })));
    let why = match () {
        () if common.epoll && (!is_transfer || common.backend() != Backend::Raw || common.spin > 0) => {
            "--epoll is for bare sockets that do not spin: --backend raw, and no --spin"
        }
        () if common.provider.is_some() && matches!(cli.command, Some(Command::Info)) => {
            "`info` tells of every provider that there is: leave --provider out"
        }
        () if common.provider.is_some() && !has_provider => "--provider is of libfabric: it needs --backend rdma or raw-fabric",
        () if common.cpu.is_some() && !is_transfer && !matches!(cli.command, Some(Command::StayAwake)) => {
            "--cpu pins one process: it is for recv, send, echo and ping"
        }
        () if common.backend() == Backend::Loopback && has_address => {
            "loopback brings its own peer, within this process: leave --connect out"
        }
        () => return Ok(()),
    };
    Err(Failure::NoConnection(why.into()))
}

/// Pins this thread, and those it will start, to a processor.
fn pin(common: &Common) -> Result<(), Failure> {
    let Some(cpu) = common.cpu else { return Ok(()) };
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)
        .and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set))
        .map_err(|error| Failure::NoConnection(format!("cannot pin to processor {cpu}: {error}; `nproc` tells how many there are")))
}

/// Raises the limit of descriptors as far as this process may: every connection takes one.
fn allow_descriptors() {
    let limit = nix::sys::resource::Resource::RLIMIT_NOFILE;
    if let Ok((_, most)) = nix::sys::resource::getrlimit(limit) {
        // Where it is refused, opening connections will tell.
        let _ = nix::sys::resource::setrlimit(limit, most, most);
    }
}
