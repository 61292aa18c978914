//! Compares every structure, field and constant of this crate with what a C compiler makes of libfabric's
//! headers, where both are installed. `NETIO3_REQUIRE_LIBFABRIC=1` makes it fail where they are not.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::{env, fs, process};

use netio3_libfabric_sys::layout;

const HEAD: &str = "\
#include <stddef.h>
#include <stdio.h>
#include <sys/uio.h>
#include <rdma/fabric.h>
#include <rdma/fi_cm.h>
#include <rdma/fi_domain.h>
#include <rdma/fi_endpoint.h>
#include <rdma/fi_eq.h>
#include <rdma/fi_errno.h>
#include <rdma/fi_ext.h>
#define SIZE(s) printf(\"sizeof %s %zu\\n\", #s, sizeof(struct s))
#define FIELD(s, f) printf(\"%s.%s %zu %zu\\n\", #s, #f, offsetof(struct s, f), sizeof(((struct s *)0)->f))
#define VALUE(c) printf(\"%s %llu\\n\", #c, (unsigned long long)(c))
int main(void) {
VALUE(FI_MAJOR_VERSION);
VALUE(FI_MINOR_VERSION);
";

#[test]
fn c_agrees() {
    let Some(answers) = ask_c() else { return };
    let answers: HashMap<&str, Vec<u64>> = answers.lines().map(parse).collect();
    let version = (answers["FI_MAJOR_VERSION"][0], answers["FI_MINOR_VERSION"][0]);
    let mut wrong = Vec::new();
    let mut compared = 0;

    for structure in structures() {
        let ours = structure.size as u64;
        let theirs = answers[&*format!("sizeof {}", structure.name)][0];
        let grows = layout::growing_structures().any(|growing| growing.name == structure.name);
        if theirs != ours && !(grows && theirs > ours) {
            wrong.push(format!("struct {}: {ours} bytes here, {theirs} in C", structure.name));
        }
        compared += 1;
        for field in structure.fields {
            let ours = [field.offset as u64, field.size as u64];
            let theirs = &answers[&*format!("{}.{}", structure.name, plain(field.name))];
            if theirs[..] != ours {
                wrong.push(format!("{}.{}: (offset, size) is {ours:?} here, {theirs:?} in C", structure.name, field.name));
            }
            compared += 1;
        }
    }
    for constant in layout::constants() {
        let theirs = answers[constant.name][0];
        if theirs != constant.value {
            wrong.push(format!("{}: {:#x} here, {theirs:#x} in C", constant.name, constant.value));
        }
        compared += 1;
    }
    assert!(wrong.is_empty(), "against the headers of {version:?}:\n{}", wrong.join("\n"));
    assert!(compared > 300, "only {compared} compared");
    eprintln!("{compared} sizes, fields and constants agree with libfabric's headers {}.{}", version.0, version.1);
}

fn structures() -> impl Iterator<Item = &'static layout::Structure> {
    layout::plain_structures().iter().chain(layout::growing_structures())
}

/// A keyword's field without Rust's mark.
fn plain(name: &str) -> &str {
    name.strip_prefix("r#").unwrap_or(name)
}

/// `sizeof name n`, `name.field n n` or `name n`.
fn parse(line: &str) -> (&str, Vec<u64>) {
    let start = if line.starts_with("sizeof ") { "sizeof ".len() } else { 0 };
    let end = start + line[start..].find(' ').expect("a name and numbers");
    (&line[..end], line[end..].split_whitespace().map(|number| number.parse().expect("a number")).collect())
}

/// Compiles and runs the program that prints C's view; none where there are no headers or no compiler.
fn ask_c() -> Option<String> {
    let directory = env::temp_dir().join(format!("netio3-libfabric-layout-{}", process::id()));
    fs::create_dir_all(&directory).expect("a directory for the program");
    let answer = compile_and_run(&directory);
    fs::remove_dir_all(&directory).expect("the directory is ours");
    answer
}

fn compile_and_run(directory: &std::path::Path) -> Option<String> {
    let compiler = env::var_os("CC").unwrap_or_else(|| "cc".into());
    let probe = directory.join("probe.c");
    fs::write(&probe, "#include <rdma/fi_cm.h>\nint main(void) { return 0; }\n").expect("written");
    let probed = Command::new(&compiler).arg("-fsyntax-only").arg(&probe).output();
    match probed {
        Ok(output) if output.status.success() => {}
        Ok(_) => return absent("libfabric's headers (apt-get install libfabric-dev)"),
        Err(_) => return absent("a C compiler"),
    }

    let source = directory.join("layout.c");
    let program: PathBuf = directory.join("layout");
    fs::write(&source, c_program()).expect("written");
    let compiled = Command::new(&compiler).arg("-w").arg("-o").arg(&program).arg(&source).output().expect("a C compiler");
    assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    let run = Command::new(&program).output().expect("it runs");
    assert!(run.status.success());
    Some(String::from_utf8(run.stdout).expect("ASCII"))
}

fn absent(what: &str) -> Option<String> {
    assert!(env::var("NETIO3_REQUIRE_LIBFABRIC").as_deref() != Ok("1"), "NETIO3_REQUIRE_LIBFABRIC=1, but {what} is missing");
    eprintln!("not compared with C: {what} is missing");
    None
}

fn c_program() -> String {
    let mut text = String::from(HEAD);
    for structure in structures() {
        writeln!(text, "SIZE({});", structure.name).expect("memory");
        for field in structure.fields {
            writeln!(text, "FIELD({}, {});", structure.name, plain(field.name)).expect("memory");
        }
    }
    for constant in layout::constants() {
        writeln!(text, "VALUE({});", constant.name).expect("memory");
    }
    text.push_str("return 0;\n}\n");
    text
}
