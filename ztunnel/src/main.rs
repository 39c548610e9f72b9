//! ztunnel; all of it is in the library, where the fuzz targets reach it.

fn main() -> std::process::ExitCode {
    karst_ztunnel::main()
}
