"""The server as a process: starting, stopping, mistakes on its command line, models that appear while it runs."""
import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytest.importorskip("fastapi", reason="requirements-serve.txt 没有装")
pytest.importorskip("uvicorn", reason="requirements-serve.txt 没有装")

from toy_server import ROOT, serving, write_model
from test_serve import ASK, _streamed


def test_sigterm_lets_a_reply_finish_and_leaves_nobody(tmp_path):
    ask = {**ASK, "max_tokens": 600, "temperature": 1.5, "seed": 1}
    with serving(tmp_path) as server:
        alone = server.chat(**ask)
        body = json.dumps({**ask, "stream": True}).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=300) as connection:
            connection.sendall(
                b"POST /v1/chat/completions HTTP/1.0\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n" % len(body)
                + body)
            got = connection.recv(1)
            server.process.send_signal(signal.SIGTERM)
            while part := connection.recv(65536):
                got += part
        assert _streamed(got.partition(b"\r\n\r\n")[2].decode()) == alone and got.endswith(b"data: [DONE]\n\n")
        assert server.process.wait(120) == 143 and "Traceback" not in server.said() and "服务已停止" in server.said()
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.1", server.port), timeout=5)
    assert not _children(server.process.pid)


def _children(pid):
    if not os.path.isdir("/proc"):
        return []
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/stat") as file:
                parent = file.read().rpartition(")")[2].split()[1]
        except OSError:
            continue
        found += [name] if parent == str(pid) else []
    return found


def test_idle_connections_do_not_delay_the_end(tmp_path):
    with serving(tmp_path) as server:
        idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(5)]
        idle[0].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{")
        time.sleep(0.5)
        assert server.stop(60) == 143 and "Traceback" not in server.said()
        for one in idle:
            one.close()


def _run(*words):
    done = subprocess.run([sys.executable, str(ROOT / "chat_agent" / "serve.py"), *map(str, words)],
                          capture_output=True, timeout=300)
    return done.returncode, done.stderr.decode()


def test_mistakes_get_a_clear_line(tmp_path):
    model = write_model(tmp_path / "one.pkl")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        code, said = _run("--model", model, "--port", taken.getsockname()[1])
        assert code == 2 and "--port" in said and "Traceback" not in said
    code, said = _run("--model", tmp_path / "none.pkl", "--port", 0)
    assert code == 3 and "none.pkl" in said and "Traceback" not in said


def test_nonsense_options_are_refused(tmp_path, monkeypatch):
    from chat_agent import serve
    from tools.errors import UserError
    for words in (["--api_key", ""], ["--api_key", "中文"], ["--port", "70000"], ["--max_batch", "0"],
                  ["--context", "1"], ["--n_layer", "3"],
                  ["--allow_origin", "app.example.com"], ["--allow_origin", "https://a.com/path"],
                  ["--allow_origin", ""]):
        with pytest.raises(UserError) as found:
            serve.main(["--model", str(tmp_path / "x.pkl"), *words])
        assert found.value.code == 2


def test_a_missing_package_is_named(monkeypatch):
    from chat_agent import serve
    from tools.errors import UserError
    for name in [m for m in sys.modules if m.startswith("chat_agent.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match="requirements-serve.txt"):
        serve.need_packages()


def test_without_a_model_there_are_curves_until_one_appears(tmp_path):
    out = tmp_path / "out"
    with serving(tmp_path, "--out_dir", str(out), models={}) as server:
        assert server.call("/")[0] == 200 and server.call("/curves")[:2] == (200,
            {"runs": [], "plan": []}) and server.call("/health")[0] == 200
        status, body, _ = server.call("/v1/chat/completions", ASK)
        assert status == 503 and "还没有模型" in body["error"]["message"] and server.call("/v1/models")[1]["data"] == []
        assert "还没有模型" in server.said()
        out.mkdir()
        os.replace(write_model(out / "part.pkl"), out / "TinySeek_SFT_final.pkl")
        assert [m["id"] for m in server.call("/v1/models")[1]["data"]] == ["SFT_final"] and server.chat()
        (out / "my").mkdir()                                # what else is finished is served beside it
        os.replace(write_model(out / "part.pkl", 1, stage="Pre"), out / "TinySeek_Pre_final.pkl")
        os.replace(write_model(out / "part.pkl", 2), out / "my" / "TinySeek_SFT_final.pkl")
        (out / "TinySeek_DPO_final.pkl").write_bytes(b"torn")
        names = [m["id"] for m in server.call("/v1/models")[1]["data"]]
        assert sorted(names) == ["Pre_final", "my/SFT_final", "out/SFT_final"] and names[0] == "out/SFT_final"
        assert server.chat() == server.chat(model="out/SFT_final") != server.chat(model="my/SFT_final")
        assert server.said().count("TinySeek_Pre_final.pkl") == 1 and "Traceback" not in server.said()


def test_a_public_address_without_a_key_is_warned_of(tmp_path):
    with serving(tmp_path, "--host", "0.0.0.0") as server:
        assert "警告" in server.said() and "--api_key" in server.said()
        assert server.chat()
        from chat_agent.server.run import network_address
        assert network_address() is None or f"http://{network_address()}:{server.port}" in server.said()


def test_names_come_from_the_command_line(tmp_path):
    from chat_agent.serve import split_name
    (tmp_path / "a=b.pkl").write_bytes(b"")
    assert split_name("小寻=out/a.pkl") == ("小寻", "out/a.pkl")
    assert split_name(str(tmp_path / "a=b.pkl")) == (None, str(tmp_path / "a=b.pkl"))
    assert split_name("out/x=1.pkl") == (None, "out/x=1.pkl") and split_name("out/x.pkl") == (None, "out/x.pkl")
