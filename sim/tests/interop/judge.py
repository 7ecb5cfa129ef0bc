"""Our repositories and those of python-tuf verify each other: with quotes, non-ASCII and fields that neither knows.

Arguments: the `crossdock` program. Needs tuf and securesystemslib[crypto]; `.ci/test` installs and runs it.
"""
import datetime
import hashlib
import json
import pathlib
import subprocess
import sys
import tempfile

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile, Role, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.ngclient import FetcherInterface, Updater
from tuf.api.exceptions import DownloadHTTPError, UnsignedMetadataError

PROGRAM = pathlib.Path(sys.argv[1]).resolve()
WORK = pathlib.Path(tempfile.mkdtemp(prefix="crossdock-interop-"))
NASTY = 'Zoë "the \\ key" ключ 鍵 \u2028'
UNKNOWN = {'ü "q"': [1, -2, None, True, {"": "\\ \" é 😀"}]}


def crossdock(*args, fails=None):
    """Runs the program; its output."""
    done = subprocess.run([PROGRAM, *map(str, args)], cwd=WORK, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = done.stdout + done.stderr
    if fails is None and done.returncode != 0:
        sys.exit(f"crossdock {args}: exit code {done.returncode}: {said}")
    if fails is not None and (done.returncode == 0 or fails not in said):
        sys.exit(f"crossdock {args} should fail with {fails!r}: {said}")
    return said


class Folder(FetcherInterface):
    """Serves a repository's folder to python-tuf's client."""

    def _fetch(self, url):
        path = WORK / url.removeprefix("folder:///")
        if not path.is_file():
            raise DownloadHTTPError("not there", 404)
        yield path.read_bytes()


def client(repository, name):
    """python-tuf's own client, from the first root on."""
    folder = WORK / name
    (folder / "targets").mkdir(parents=True, exist_ok=True)
    root = (WORK / repository / "metadata/1.root.json").read_bytes()
    base = f"folder:///{repository}"
    return Updater(str(folder), f"{base}/metadata/", str(folder / "targets"), f"{base}/targets/", Folder(), bootstrap=root)


def release(version):
    (WORK / "app").mkdir(exist_ok=True)
    (WORK / "app/model").write_text(f"model {version} {NASTY}")
    yaml = f"apiVersion: crossdock.io/v1\napp: model\nversion: {version}\nartifacts: [{{source: model, target: 'mödel \"q\"'}}]\n"
    (WORK / "app/release.yaml").write_text(yaml)


def ours_for_them():
    for name in ["ann", "bob", "ci", "ci-2"]:
        crossdock("keys", "new", name, "--no-passphrase")
        public = json.loads((WORK / f"{name}.pub").read_text())
        public |= {"x-crossdock-name": f"{name} {NASTY}", "x-unknown": UNKNOWN}
        (WORK / f"{name}.pub").write_text(json.dumps(public, ensure_ascii=name == "ann"))
    init = ["--root-key", "ann.pub", "--root-key", "bob.pub", "--root-threshold", 2, "--targets-key", "ann.pub"]
    crossdock("release", "init", "ours", *init, "--pipeline-key", "ci.pub")
    release("1.0.0")
    crossdock("release", "build", "app/release.yaml", "--repo", "ours")
    crossdock("release", "sign", "--repo", "ours", "--key", "ann.pem", "--key", "bob.pem")
    crossdock("release", "publish", "--offline", "--repo", "ours", "--key", "ci.pem")
    updater = client("ours", "client-ours")
    updater.refresh()
    root = Metadata.from_file(str(WORK / "client-ours/root.json")).signed
    names = {key.unrecognized_fields["x-crossdock-name"] for key in root.keys.values()}
    assert names == {f"{name} {NASTY}" for name in ["ann", "bob", "ci"]}, names
    assert all(key.unrecognized_fields["x-unknown"] == UNKNOWN for key in root.keys.values())
    for keyid, key in root.keys.items():
        bare = {"keytype": key.keytype, "scheme": key.scheme, "keyval": key.keyval}
        text = json.dumps(bare, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(text).hexdigest() == keyid
    info = updater.get_targetinfo("model/1.0.0.json")
    manifest = json.loads(pathlib.Path(updater.download_target(info)).read_text())
    assert manifest["files"][0]["path"] == 'mödel "q"'

    # The pipeline's key is revoked: their client follows our new root, and the old key's timestamp is refused.
    crossdock("key", "revoke", f"ci {NASTY}", "--replace-with", "ci-2.pub", "--repo", "ours")
    crossdock("release", "sign", "--repo", "ours", "--key", "ann.pem", "--key", "bob.pem")
    crossdock("release", "publish", "--offline", "--repo", "ours", "--key", "ci-2.pem")
    updater = client("ours", "client-ours")
    updater.refresh()
    assert Metadata.from_file(str(WORK / "client-ours/root.json")).signed.version == 2
    path = WORK / "ours/metadata/timestamp.json"
    good, stolen = path.read_bytes(), secret("ci.pem")
    document = Metadata.from_bytes(good)
    document.signed.version += 1
    document.sign(stolen)
    document.to_file(str(path))
    try:
        client("ours", "client-ours").refresh()
        sys.exit("python-tuf took a timestamp of a revoked key")
    except UnsignedMetadataError:
        path.write_bytes(good)
    # An edit keeps what our tool does not know.
    crossdock("release", "renew", "--root", "--repo", "ours")
    staged = Metadata.from_file(str(WORK / "ours/staged/root.json")).signed
    assert all(key.unrecognized_fields["x-unknown"] == UNKNOWN for key in staged.keys.values())


def secret(name):
    """A key of ours, in python-tuf's hands."""
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return CryptoSigner(load_pem_private_key((WORK / name).read_bytes(), None))


def pem(signer, name):
    """A key of theirs, in our hands."""
    (WORK / name).write_bytes(signer.private_bytes)


def theirs_for_us():
    """A repository that python-tuf wrote; ours verifies it, edits it, and theirs reads it again."""
    expires = datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0) + datetime.timedelta(days=100)
    keys = {role: CryptoSigner.generate_ed25519() for role in ["root", "targets", "pipeline"]}
    for role, signer in keys.items():
        pem(signer, f"their-{role}.pem")
        signer.public_key.unrecognized_fields["x-unknown"] = UNKNOWN
    root = Root(expires=expires, consistent_snapshot=True)
    for role in ["root", "targets", "snapshot", "timestamp"]:
        root.add_key(keys.get(role, keys["pipeline"]).public_key, role)
        root.roles[role].unrecognized_fields["x-unknown"] = UNKNOWN
    root.unrecognized_fields["x-unknown"] = UNKNOWN

    manifest = json.loads((next((WORK / "ours/targets/model").glob("*.1.0.0.json"))).read_text())
    manifest["xUnknown"] = UNKNOWN
    text = json.dumps(manifest).encode()
    file = TargetFile.from_data("model/1.0.0.json", text, ["sha256"])
    file.unrecognized_fields["custom"] = {"app": "model", "version": "1.0.0", "releaseCounter": 1, "xUnknown": UNKNOWN}
    file.unrecognized_fields["x-unknown"] = UNKNOWN
    foreign = TargetFile.from_data(NASTY, b"somebody else's", ["sha256", "sha512"])
    targets = Targets(expires=expires, targets={"model/1.0.0.json": file, NASTY: foreign})
    targets.unrecognized_fields["x-unknown"] = UNKNOWN

    folder = WORK / "theirs"
    for name in ["metadata", "staged", "blobs", "targets/model"]:
        (folder / name).mkdir(parents=True)
    for blob in (WORK / "ours/blobs").iterdir():
        (folder / "blobs" / blob.name).write_bytes(blob.read_bytes())
    digest = hashlib.sha256(text).hexdigest()
    (folder / f"targets/model/{digest}.1.0.0.json").write_bytes(text)

    def write(signed, signer, name):
        document = Metadata(signed)
        document.sign(signer)
        data = document.to_bytes()
        (folder / "metadata" / name).write_bytes(data)
        return MetaFile.from_data(signed.version, data, ["sha256", "sha512"])

    write(root, keys["root"], "1.root.json")
    meta = write(targets, keys["targets"], "1.targets.json")
    snapshot = Snapshot(expires=expires, meta={"targets.json": meta})
    meta = write(snapshot, keys["pipeline"], "1.snapshot.json")
    write(Timestamp(expires=expires, snapshot_meta=meta), keys["pipeline"], "timestamp.json")
    client("theirs", "client-theirs").refresh()
    said = crossdock("release", "verify", "--repo", "theirs")
    assert "all signatures are good" in said and "model@1.0.0" in said, said

    # Edited here: the next release, a new root with another threshold; read there.
    release("1.1.0")
    crossdock("keys", "new", "carl", "--no-passphrase")
    crossdock("root", "rotate", "--repo", "theirs", "--add-key", "targets", "carl.pub", "--threshold", "targets", 2)
    crossdock("release", "build", "app/release.yaml", "--repo", "theirs")
    crossdock("release", "sign", "--repo", "theirs", "--key", "their-root.pem", "--key", "their-targets.pem")
    publish = ["release", "publish", "--offline", "--repo", "theirs", "--key", "their-pipeline.pem"]
    crossdock(*publish, fails="1 of 2 signatures")
    crossdock("release", "sign", "--repo", "theirs", "--key", "carl.pem")
    crossdock(*publish)
    updater = client("theirs", "client-theirs")
    updater.refresh()
    root = Metadata.from_file(str(WORK / "client-theirs/root.json")).signed
    assert root.version == 2 and root.unrecognized_fields["x-unknown"] == UNKNOWN
    assert root.roles["targets"].threshold == 2
    assert all(role.unrecognized_fields["x-unknown"] == UNKNOWN for role in root.roles.values())
    targets = Metadata.from_file(str(WORK / "client-theirs/targets.json")).signed
    assert targets.unrecognized_fields["x-unknown"] == UNKNOWN
    old = targets.targets["model/1.0.0.json"].unrecognized_fields
    assert old["custom"]["xUnknown"] == UNKNOWN and old["x-unknown"] == UNKNOWN
    assert targets.targets[NASTY].length == 15 and "model/1.1.0.json" in targets.targets
    # A byte of theirs that changes is refused here.
    path = folder / "metadata/2.targets.json"
    path.write_bytes(path.read_bytes().replace(b"1.1.0", b"1.1.9"))
    crossdock("release", "verify", "--repo", "theirs", fails="changed after it was signed")


ours_for_them()
theirs_for_us()
print("python-tuf and crossdock verify and edit each other's repositories")
