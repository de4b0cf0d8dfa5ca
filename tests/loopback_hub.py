"""A small Hub on the loopback interface: it serves a folder of repositories, and takes what huggingface_hub pushes."""

import base64
import hashlib
import json
import os
import re
import shutil
import socket
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

import yaml
from huggingface_hub.repocard_data import model_index_to_eval_results

COMMIT = "0123456789abcdef0123456789abcdef01234567"  # of what nobody pushed
USER, TOKEN = "user", "hf_test"  # who may write to user/..., and nowhere else

# what the Hub's own .gitattributes and limits send the way of large files (LFS), of what a model's folder has
LFS_SUFFIXES = (".bin", ".model", ".npy", ".npz", ".onnx", ".pt", ".pth", ".safetensors")
REGULAR_BYTES = 10 * 2**20


class HubError(Exception):
    """An answer that is no success: status, what it is about and, where the Hub names it, its code."""

    def __init__(self, status, message, code=None):
        super().__init__(message)
        self.status, self.code = status, code


class Repositories:
    """
    Repositories in `folder`: `main` as `owner/name`, other branches as `owner/name@branch`, large files under their
    SHA-256 in `.lfs`. Without a history: a commit is there until the next one of its branch.
    """

    def __init__(self, folder):
        self.folder, self.objects = folder, folder / ".lfs"
        self.heads = {}  # (repository, branch): commit
        self.private = set()

    def place(self, repository, branch="main"):
        return self.folder / (repository if branch == "main" else f"{repository}@{branch}")

    def head(self, repository, branch):
        return self.heads.get((repository, branch), COMMIT)

    def branch(self, repository, revision):
        """The branch that a revision names or is the head of."""
        if not repository or not self.place(repository).is_dir():
            raise HubError(404, "Repository not found", "RepoNotFound")
        for branch in {"main"} | {branch for name, branch in self.heads if name == repository}:
            if revision in (branch, self.head(repository, branch)):
                return branch
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, repository, branch):
        place = self.place(repository, branch)
        return {file.relative_to(place).as_posix(): file for file in sorted(place.rglob("*")) if file.is_file()}

    def create(self, repository, private):
        if self.place(repository).is_dir():
            raise HubError(409, "You already created this model repo")
        self.place(repository).mkdir(parents=True)
        if private:
            self.private.add(repository)

    def create_branch(self, repository, branch):
        self.branch(repository, "main")
        if self.place(repository, branch).is_dir():
            raise HubError(409, "Reference already exists")
        shutil.copytree(self.place(repository), self.place(repository, branch))
        self.heads[repository, branch] = self.head(repository, "main")

    def commit(self, repository, branch, lines):
        """Check all that a commit asks for, then do it."""
        header, *operations = lines
        if header["value"].get("parentCommit", self.head(repository, branch)) != self.head(repository, branch):
            raise HubError(412, "A commit has happened since")
        present, place = self.files(repository, branch), self.place(repository, branch)
        contents = {}  # path: bytes, file of a large object, or None for what goes
        for operation in operations:
            value = operation["value"]
            path = PurePosixPath(value["path"])
            if path.is_absolute() or {"..", ".git"} & set(path.parts):
                raise HubError(400, f"Invalid path: {path}")
            if operation["key"] == "file":
                contents[str(path)] = base64.b64decode(value["content"], validate=True)
                if is_large(str(path), len(contents[str(path)])):
                    raise HubError(400, f"{path} has to come as a large file")
            elif operation["key"] == "lfsFile":
                contents[str(path)] = self.objects / value["oid"]
                if not contents[str(path)].is_file() or contents[str(path)].stat().st_size != value["size"]:
                    raise HubError(400, f"LFS pointer of {path} points to an object that is not here")
            elif operation["key"] == "deletedFile":
                if str(path) not in present:
                    raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
                contents[str(path)] = None
            elif operation["key"] == "deletedFolder":
                contents |= dict.fromkeys(name for name in present if path in PurePosixPath(name).parents)
            else:
                raise HubError(400, f"Unknown operation {operation['key']}")
        for name, content in contents.items():
            target = place / name
            if content is None:
                target.unlink()
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.with_name(f".{target.name}.new")
            if isinstance(content, bytes):
                temporary.write_bytes(content)
            else:
                shutil.copyfile(content, temporary)
            os.replace(temporary, target)
        state = [self.head(repository, branch), header, [line["value"] for line in operations]]
        self.heads[repository, branch] = hashlib.sha1(json.dumps(state).encode()).hexdigest()
        return self.heads[repository, branch]


def is_large(path, size):
    return path.endswith(LFS_SUFFIXES) or size > REGULAR_BYTES


def oid_of(path, content):
    """What the Hub knows a file by: the SHA-256 of a large one, git's own hash of the others."""
    if is_large(path, len(content)):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def loopback_hub(folder, cut=None, fail=None):
    """
    Serve `folder`, which holds files as `owner/name/file`, until the block ends; what is pushed to `user/name` with
    the token `hf_test` ends there.

    Args:
        folder: of the repositories.
        cut: SHA-256 to a number of bytes: uploads of these large files end there, with the connection cut. The caller
            may change it at any time.
        fail: parts of paths: the next request whose path has one is answered 500, once for each entry, which goes.

    Yields:
        (str, list): the URL, for `HF_ENDPOINT`, and the requests so far, as (method, path).
    """
    requests, lock, repositories = [], threading.RLock(), Repositories(folder)
    cut, fail = {} if cut is None else cut, [] if fail is None else fail

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            url = urlsplit(self.path)
            requests.append((self.command, unquote(self.path)))
            if self.command == "PUT":  # the large bodies, which are neither kept in memory nor wait for each other
                return self.take_object(*url.path.split("/")[-2:])
            self.body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.query = parse_qs(url.query)
            try:
                for part in [part for part in fail if part in self.path][:1]:
                    fail.remove(part)
                    raise HubError(500, "Broken on purpose")
                with lock:
                    for (method, pattern), route in ROUTES.items():
                        match = re.fullmatch(pattern, url.path)
                        if match and self.command in method.split():
                            return route(self, *map(unquote, match.groups(default="")))
                raise HubError(404, f"No such address: {url.path}", "EntryNotFound")
            except HubError as error:
                headers = {"X-Error-Message": str(error)} | ({"X-Error-Code": error.code} if error.code else {})
                return self.answer_json({"error": str(error)}, error.status, headers)

        def do_HEAD(self):
            self.do_GET()

        def do_POST(self):
            self.do_GET()

        def do_PUT(self):
            self.do_GET()

        def whoami(self):
            self.expect_token()
            return self.answer_json({"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}})

        def create_repo(self):
            asked = json.loads(self.body)
            repository = f"{asked['organization'] or USER}/{asked['name']}"
            self.expect_token(repository)
            private = asked.get("visibility") == "private" or bool(asked.get("private"))  # one after the other API
            address = {"url": f"{self.url}/{repository}", "name": repository}
            try:
                repositories.create(repository, private)
            except HubError as error:  # the one whose body is read: it has to say where the repository is
                return self.answer_json({"error": str(error), **address}, error.status)
            return self.answer_json(address)

        def create_branch(self, repository, branch):
            self.expect_token(repository)
            repositories.create_branch(repository, branch)
            return self.answer_json({})

        def validate_yaml(self):
            parts = json.loads(self.body)["content"].split("---\n", 2)
            try:
                data = yaml.safe_load(parts[1]) if parts[0] == "" and len(parts) == 3 else {}
                if not isinstance(data, dict):
                    raise ValueError("the metadata are no mapping")
                if "model-index" in data:
                    model_index_to_eval_results(data["model-index"])
                    json.dumps(data["model-index"], allow_nan=False)
            except (KeyError, TypeError, ValueError, yaml.YAMLError) as error:
                return self.answer_json({"errors": [{"message": str(error)}], "warnings": []}, 400)
            return self.answer_json({"errors": [], "warnings": []})

        def model_info(self, repository, revision):
            branch = self.readable(repository, revision or "main")
            return self.answer_json(
                {
                    "id": repository,
                    "sha": repositories.head(repository, branch),
                    "private": repository in repositories.private,
                    "tags": [],
                    "siblings": [{"rfilename": name} for name in repositories.files(repository, branch)],
                }
            )

        def tree(self, repository, revision, folder):
            branch = self.readable(repository, revision)
            entries = {}
            for name, file in repositories.files(repository, branch).items():
                path = PurePosixPath(name)
                if folder and PurePosixPath(folder) not in path.parents:
                    continue
                content = file.read_bytes()
                entries[name] = {"type": "file", "path": name, "size": len(content), "oid": oid_of(name, content)}
                if is_large(name, len(content)):
                    entries[name]["lfs"] = {"oid": oid_of(name, content), "size": len(content), "pointerSize": 134}
                for parent in path.parents:
                    if str(parent) != "." and PurePosixPath(folder) in parent.parents:
                        oid = hashlib.sha1(str(parent).encode()).hexdigest()
                        entries[str(parent)] = {"type": "directory", "path": str(parent), "size": 0, "oid": oid}
            if folder and not entries:
                raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
            if self.query.get("recursive", ["false"])[0].lower() not in ("true", "1"):
                top = PurePosixPath(folder)
                entries = {name: entry for name, entry in entries.items() if PurePosixPath(name).parent == top}
            return self.answer_json(list(entries.values()))

        def preupload(self, repository, revision):
            self.expect_token(repository)
            present = repositories.files(repository, repositories.branch(repository, revision))
            return self.answer_json(
                {
                    "files": [
                        {
                            "path": file["path"],
                            "uploadMode": "lfs" if is_large(file["path"], file["size"]) else "regular",
                            "shouldIgnore": False,
                            "oid": oid_of(file["path"], present[file["path"]].read_bytes())
                            if file["path"] in present
                            else None,
                        }
                        for file in json.loads(self.body)["files"]
                    ]
                }
            )

        def lfs_batch(self, repository):
            self.expect_token(repository)
            repositories.branch(repository, "main")
            objects = []
            for asked in json.loads(self.body)["objects"]:
                entry = {"oid": asked["oid"], "size": asked["size"]}
                if not (repositories.objects / asked["oid"]).is_file():
                    entry["actions"] = {
                        "upload": {"href": f"{self.url}/lfs/{asked['oid']}/{asked['size']}"},
                        "verify": {"href": f"{self.url}/{repository}.git/info/lfs/verify"},
                    }
                objects.append(entry)
            return self.answer_json({"transfer": "basic", "objects": objects})

        def take_object(self, oid, size):
            """The body of an upload, whose address is its permission, as it is at the Hub's storage."""
            left = min(int(self.headers["Content-Length"]), cut.get(oid, 2**63))
            repositories.objects.mkdir(parents=True, exist_ok=True)
            temporary = repositories.objects / f"{oid}.{threading.get_ident()}.new"
            digest = hashlib.sha256()
            with temporary.open("wb") as file:
                while block := self.rfile.read(min(left, 2**20)):
                    digest.update(block)
                    file.write(block)
                    left -= len(block)
            is_whole = digest.hexdigest() == oid and temporary.stat().st_size == int(size)
            if oid in cut:
                temporary.unlink()
                self.close_connection = True
                return self.connection.shutdown(socket.SHUT_RDWR)
            if not is_whole:
                temporary.unlink()
                return self.answer_json({"error": "The content does not match its SHA-256 or size"}, 400)
            os.replace(temporary, repositories.objects / oid)
            return self.answer(200, b"", {"ETag": f'"{oid}"'})

        def lfs_verify(self, repository):
            self.expect_token(repository)
            asked = json.loads(self.body)
            file = repositories.objects / asked["oid"]
            if not file.is_file() or file.stat().st_size != asked["size"]:
                raise HubError(404, "The object is not here, or of another size")
            return self.answer_json({})

        def commit(self, repository, revision):
            self.expect_token(repository)
            branch = repositories.branch(repository, revision)
            commit = repositories.commit(repository, branch, [json.loads(line) for line in self.body.splitlines()])
            address = f"{self.url}/{repository}/commit/{commit}"
            return self.answer_json({"success": True, "commitOid": commit, "commitUrl": address, "hookOutput": ""})

        def resolve(self, repository, revision, path):
            branch = self.readable(repository, revision)
            file = repositories.place(repository, branch) / path
            commit = {"X-Repo-Commit": repositories.head(repository, branch)}
            if not file.is_file():
                return self.answer(404, b"", {"X-Error-Code": "EntryNotFound", **commit})
            content = file.read_bytes()
            return self.answer(200, content, {"ETag": f'"{oid_of(path, content)}"', **commit})

        @property
        def url(self):
            return f"http://127.0.0.1:{server.server_port}"

        @property
        def token(self):
            return self.headers.get("Authorization", "").removeprefix("Bearer ")

        def expect_token(self, repository=f"{USER}/"):
            if self.token != TOKEN:
                raise HubError(401, "Invalid username or password.")
            if not repository.startswith(f"{USER}/"):
                raise HubError(403, f"You don't have the rights to write to {repository}")

        def readable(self, repository, revision):
            if repository in repositories.private and self.token != TOKEN:
                raise HubError(401, "Repository not found", "RepoNotFound")
            return repositories.branch(repository, revision)

        def answer_json(self, value, status=200, headers=None):
            headers = {"Content-Type": "application/json", **(headers or {})}
            return self.answer(status, json.dumps(value).encode(), headers)

        def answer(self, status, content, headers):
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    model = r"/api/models/([^/]+/[^/]+)"
    ROUTES = {  # noqa: N806 - a table, next to what it names
        ("GET", "/api/whoami-v2"): Handler.whoami,
        ("POST", "/api/repos/create"): Handler.create_repo,
        ("POST", "/api/validate-yaml"): Handler.validate_yaml,
        ("GET HEAD", model + r"(?:/revision/([^/]+))?"): Handler.model_info,
        ("GET HEAD", model + r"/tree/([^/]+)/?(.*)"): Handler.tree,
        ("POST", model + r"/branch/([^/]+)"): Handler.create_branch,
        ("POST", model + r"/preupload/([^/]+)"): Handler.preupload,
        ("POST", model + r"/commit/([^/]+)"): Handler.commit,
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch"): Handler.lfs_batch,
        ("POST", r"/([^/]+/[^/]+)\.git/info/lfs/verify"): Handler.lfs_verify,
        ("GET HEAD", r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)"): Handler.resolve,
    }
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
