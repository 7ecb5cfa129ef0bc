//! Keys on a token, through PKCS#11, with SoftHSM as the token.

use anyhow::{Context as _, ensure};

use super::Desk;

const PIN: &str = "12345678";

#[tokio::test]
async fn a_key_on_a_token_signs_like_any_other() -> anyhow::Result<()> {
    let mut desk = Desk::open().await?;
    let module = ["/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/softhsm/libsofthsm.so"];
    let module = module.into_iter().find(|path| std::path::Path::new(path).exists()).context("softhsm2")?;
    std::fs::create_dir(desk.stage.path("tokens"))?;
    let folder = desk.stage.path("tokens").display().to_string();
    desk.write("softhsm.conf", &format!("directories.tokendir = {folder}\nlog.level = ERROR\n"))?;
    desk.variables.push(("SOFTHSM2_CONF", desk.stage.path("softhsm.conf").display().to_string()));
    desk.variables.push(("CROSSDOCK_PKCS11_MODULE", module.into()));
    desk.run(&format!("softhsm2-util --init-token --free --label safe --pin {PIN} --so-pin {PIN}"))?;
    desk.run("crossdock keys new ann --no-passphrase")?;
    desk.run(&format!("softhsm2-util --import ann.pem --token safe --label ann --id 01 --pin {PIN}"))?;
    let id = desk.run("crossdock keys id ann.pub")?;
    std::fs::remove_file(desk.stage.path("ann.pem"))?; // the token alone holds it now
    let key = "pkcs11:token=safe;object=ann";
    ensure!(desk.run(&format!("crossdock keys id {key}"))? == id);

    desk.write("pin", PIN)?;
    desk.write("wrong", "87654321")?;
    desk.run("crossdock keys new ci --no-passphrase")?;
    desk.run(&format!("crossdock release init repo --root-key {key} --targets-key {key} --pipeline-key ci.pub"))?;
    let sign = format!("crossdock release sign --repo repo --key {key}");
    desk.refused(&sign, "--passphrase-file")?;
    desk.refused(&format!("{sign} --passphrase-file wrong"), "the PIN is wrong")?;
    let said = desk.run(&format!("{sign} --passphrase-file pin"))?;
    ensure!(said.contains(", ann") && said.contains("1 of 1, enough"), "{said}");
    desk.run("crossdock release publish --offline --repo repo --key ci.pem")?;
    desk.run("crossdock release verify --repo repo")?;
    for (key, why) in [
        ("pkcs11:token=safe;object=bob", "no ed25519"),
        ("pkcs11:token=other;object=ann", "there is \"safe\""),
        ("pkcs11:token=safe", "names no object"),
    ] {
        desk.refused(&format!("crossdock keys id {key}"), why)?;
    }
    desk.variables.pop();
    desk.refused(&format!("crossdock keys id {key}"), "CROSSDOCK_PKCS11_MODULE")?;
    desk.stage.close().await
}
