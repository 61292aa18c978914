//! Compiles the side of the comparison that is written in C++.

use std::path::PathBuf;

fn main() {
    println!("cargo:rerun-if-changed=asio/main.cpp");
    let program = PathBuf::from(std::env::var_os("OUT_DIR").expect("Cargo sets it")).join("asio-peer");
    let compiler = cc::Build::new().cpp(true).std("c++17").opt_level(3).define("ASIO_STANDALONE", None).get_compiler();
    let compiled = compiler.to_command().arg("asio/main.cpp").arg("-pthread").arg("-o").arg(&program).status();
    match compiled {
        Ok(status) if status.success() => println!("cargo:rustc-env=ASIO_PEER={}", program.display()),
        Ok(_) => panic!("asio/main.cpp does not compile; without asio's headers: apt-get install libasio-dev"),
        Err(error) => panic!("cannot run the C++ compiler `{}`: {error}; apt-get install g++", compiler.path().display()),
    }
}
