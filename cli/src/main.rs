//! See the library.

fn main() -> std::process::ExitCode {
    karst_cli::main()
}
