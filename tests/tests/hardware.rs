//! The scripts for machines with a GPU, as far as they can be run without one.
#![cfg(unix)]

use std::process::Command;

/// The script for a Mac, with a stand-in for the command line that answers as it does.
#[test]
fn the_script_for_a_mac_writes_what_it_measured() {
    let root = bessemer_tests::models::root();
    let folder = tempfile::tempdir().unwrap();
    let bessemer = folder.path().join("bessemer");
    std::fs::write(
        &bessemer,
        "#!/bin/sh\n\
         case \"$*\" in\n\
         'doctor --json') echo '{\"metal\": null}' ;;\n\
         doctor) echo 'bessemer 0.1.0' ;;\n\
         'verify bad.engine '*) echo 'a step is off' >&2; exit 5 ;;\n\
         verify*' --device cpu --trust --json') echo '{\"steps\": 3}' ;;\n\
         bench*' --trust --device cpu -p 4 -n 2 -r 1 -o json') echo '{\"decode\": 7.5}' ;;\n\
         bench*' -o md') echo '| decode | 7.5 |' ;;\n\
         *) echo \"unexpected: $*\" >&2; exit 2 ;;\n\
         esac\n",
    )
    .unwrap();
    std::fs::set_permissions(&bessemer, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let script = root.join("tests/hardware/metal/run.sh");
    let run = |out: &str, engines: &[&str]| {
        let out = folder.path().join(out);
        let mut shell = Command::new("sh");
        shell.args([&script, &bessemer, &out]).args(engines).current_dir(folder.path());
        shell.envs([("DEVICE", "cpu"), ("PROMPT", "4"), ("TOKENS", "2"), ("ROUNDS", "1")]);
        let done = shell.output().unwrap();
        let result = std::fs::read_to_string(out.join("result.json")).unwrap();
        let result: serde_json::Value =
            serde_json::from_str(&result).unwrap_or_else(|e| panic!("{e}: {result}"));
        (done.status.code(), result, std::fs::read_to_string(out.join("table.md")).unwrap())
    };
    let (code, result, table) = run("good", &["a \"b\".engine", "c.engine"]);
    assert_eq!(code, Some(0), "{table}");
    assert_eq!(result["engines"][0]["engine"], "a \"b\".engine");
    assert_eq!(result["engines"][1]["verify"]["steps"], 3);
    assert_eq!(result["engines"][1]["bench"]["decode"], 7.5);
    assert!(table.contains("| decode | 7.5 |") && !table.contains("FAILED"), "{table}");

    let (code, result, table) = run("bad", &["c.engine", "bad.engine"]);
    assert_eq!(code, Some(1));
    assert_eq!(
        (&result["engines"][0]["verify_exit"], &result["engines"][1]["verify_exit"]),
        (&0.into(), &5.into())
    );
    assert_eq!(result["engines"][1]["verify"], serde_json::Value::Null);
    assert!(table.contains("bad.engine: FAILED with exit code 5"), "{table}");
}
