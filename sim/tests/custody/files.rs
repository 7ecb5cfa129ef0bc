//! Key files: with and without a person at a terminal.

use anyhow::ensure;

use super::Desk;

#[tokio::test]
async fn key_files_open_with_openssl_and_never_without_their_passphrase() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    desk.write("pass", "correct horse\n")?;
    desk.write("other", "battery staple")?;
    // Where nobody is, it says what to say instead of leaving an open key behind.
    desk.refused("crossdock keys new ann", "--no-passphrase")?;
    desk.refused("crossdock keys new ann --passphrase-file none", "none")?;
    desk.write("short", "1234567")?;
    desk.refused("crossdock keys new ann --passphrase-file short", "8 characters")?;
    ensure!(!desk.stage.path("ann.pem").exists());
    desk.run("crossdock keys new ann --passphrase-file pass")?;
    desk.refused("crossdock keys new ann --no-passphrase", "not overwritten")?;
    ensure!(desk.read("ann.pem")?.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
    desk.run("openssl pkey -in ann.pem -passin file:pass -noout")?;
    ensure!(desk.ran("openssl pkey -in ann.pem -passin file:other -noout")?.0 != 0);
    desk.run("openssl pkey -in ann.pem -passin file:pass -pubout -out ann-public.pem")?;
    let id = desk.run("crossdock keys id ann.pub")?;
    ensure!(desk.run("crossdock keys id ann-public.pem")? == id);
    ensure!(desk.run("crossdock keys id ann.pem")? == id, "beside its .pub nobody is asked");

    // OpenSSL's own encryption, and a key that is opened and closed here.
    desk.run("openssl pkcs8 -topk8 -in ann.pem -passin file:pass -passout file:other -out theirs.pem")?;
    desk.refused("crossdock keys id theirs.pem", "--passphrase-file")?;
    desk.refused("crossdock keys id theirs.pem --passphrase-file pass", "passphrase given is wrong")?;
    ensure!(desk.run("crossdock keys id theirs.pem --passphrase-file other")? == id);
    desk.run("crossdock keys passphrase theirs.pem --passphrase-file other --new-passphrase-file pass")?;
    desk.run("openssl pkey -in theirs.pem -passin file:pass -noout")?;
    desk.run("crossdock keys passphrase theirs.pem --passphrase-file pass --remove")?;
    desk.run("openssl pkey -in theirs.pem -noout")?;
    let variable =
        desk.command("crossdock").args(["keys", "id", "ann.pem"]).env("CROSSDOCK_PASSPHRASE", "x").output()?;
    ensure!(variable.status.success());

    // It signs, and says so where it cannot.
    desk.run("crossdock keys new bob --passphrase-file pass")?;
    desk.run("crossdock keys new ci --no-passphrase")?;
    desk.run("crossdock release init repo --root-key ann.pem --targets-key bob.pub --pipeline-key ci.pem")?;
    desk.refused(
        "crossdock release sign --repo repo --key ann.pem --key bob.pem",
        "could not open the key file ann.pem",
    )?;
    let said = desk.run("crossdock release sign --repo repo --key ann.pem --key bob.pem --passphrase-file pass")?;
    ensure!(said.contains("adds key") && said.contains(", ann") && said.contains("1 of 1, enough"), "{said}");
    desk.run("crossdock release publish --offline --repo repo --key ci.pem")?;
    let said = desk.run("crossdock keys list --repo repo --in .")?;
    ensure!(said.contains("root: 1 of 1") && said.contains("./ann.pem"), "{said}");
    let said = desk.run("crossdock keys show bob.pem --repo repo")?;
    ensure!(said.contains("for      targets") && said.contains("(encrypted)"), "{said}");
    desk.stage.close().await
}

/// What `terminal.py` does at a terminal of its own: each line is what to wait for, and what to type then.
fn at_terminal(desk: &Desk, talk: &[(&str, &str)], line: &str) -> anyhow::Result<(i32, String)> {
    let mut command = desk.command("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/custody/terminal.py"));
    command.arg(serde_json::to_string(talk)?).arg(desk.stage.crossdock_program());
    let output = command.args(line.split_whitespace()).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.stderr.is_empty(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok((output.status.code().unwrap_or(-1), said))
}

#[tokio::test]
async fn a_person_at_a_terminal_is_asked_and_nothing_is_echoed() -> anyhow::Result<()> {
    let desk = Desk::open().await?;
    const SECRET: &str = "correct horse";
    let twice = [("New passphrase", SECRET), ("The same again", SECRET)];
    let (code, said) = at_terminal(&desk, &twice, "keys new ann")?;
    ensure!(code == 0 && !said.contains(SECRET), "{said}");
    ensure!(desk.read("ann.pem")?.contains("ENCRYPTED"));
    let (code, said) = at_terminal(&desk, &[("New passphrase", SECRET), ("again", "other one")], "keys new bob")?;
    ensure!(code == 1 && said.contains("differ") && !desk.stage.path("bob.pem").exists(), "{said}");
    let (code, _) = at_terminal(&desk, &[], "keys new open --no-passphrase")?;
    ensure!(code == 0 && !desk.read("open.pem")?.contains("ENCRYPTED"));

    // A small team's keys are encrypted too, but the pipeline's; the signer sees what it is and says yes, in full.
    let (code, said) = at_terminal(&desk, &twice, "release init repo")?;
    ensure!(code == 0, "{said}");
    let sealed = |name: &str| desk.read(&format!("repo/keys/{name}.pem")).map(|text| text.contains("ENCRYPTED"));
    ensure!(sealed("root")? && sealed("targets")? && !sealed("pipeline")?);
    desk.run("crossdock release publish --offline --repo repo")?;
    desk.release("1.0.0")?;
    desk.run("crossdock release build app/release.yaml --repo repo")?;
    let (code, said) = at_terminal(&desk, &[("Type yes", "y")], "release sign --repo repo")?;
    ensure!(code == 4 && said.contains("adds     model@1.0.0") && said.contains("nothing was signed"), "{said}");
    let wrong = [("Passphrase of", "no"), ("Passphrase of", "nor this"), ("Passphrase of", "neither")];
    let (code, said) = at_terminal(&desk, &wrong, "release sign --yes --repo repo")?;
    ensure!(code == 1 && said.contains("wrong 3 times"), "{said}");
    let right = [("Type yes", "yes"), ("Passphrase of", "typo"), ("Passphrase of", SECRET)];
    let (code, said) = at_terminal(&desk, &right, "release sign --repo repo")?;
    ensure!(code == 0 && said.contains("enough") && !said.contains(SECRET), "{said}");
    desk.run("crossdock release publish --offline --repo repo")?;
    desk.stage.close().await
}
