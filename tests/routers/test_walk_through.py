"""deploy/smg/up.sh as the README has it: it brings up what it says, and takes all of it down again."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import openai

from fleet import page, wait_until
from ports import free_port

ROOT = pathlib.Path(__file__).resolve().parents[2]


def test_it_brings_up_smg_and_two_servers_and_takes_them_down():
    # What the script listens on: SMG, its metrics, and the servers with their admin ports.
    port = free_port(1, 2, 100, 101, 102)
    env = {name: value for name, value in os.environ.items() if not name.startswith("BAICHUAN_")}
    env |= {
        "PORT": str(port), "SERVER": os.environ["BAICHUAN_SERVER_BINARY"], "MODEL": os.environ["BAICHUAN_CHECKPOINT"],
        "SMG_VENV": str(pathlib.Path(sys.prefix)),
    }
    # A group of its own, as a terminal gives it: Ctrl-C reaches every process.
    process = subprocess.Popen([ROOT / "deploy/smg/up.sh"], env=env, start_new_session=True)

    def answers(path):
        assert process.poll() is None, f"the script ended with {process.returncode}"
        with contextlib.suppress(OSError):
            return page(f"http://127.0.0.1:{port}{path}")
        return 0, ""

    try:
        wait_until(lambda: answers("/workers")[1].count('"is_healthy":true') == 2, "two workers were not there")
        wait_until(lambda: "baichuan-m1-wordnet" in answers("/v1/tokenizers")[1], "the tokenizer was not there")
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0)
        answer = client.chat.completions.create(
            model="baichuan-m1-wordnet", messages=[{"role": "user", "content": "What is appendicitis?"}]
        )
        assert answer.choices[0].message.content == "inflammation of the vermiform appendix"
        assert page(f"http://127.0.0.1:{port + 101}/readyz")[0] == 200
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(timeout=60)
    # The script's own end, or that of a server which was interrupted as well and seen to end first.
    assert process.returncode in (130, 0)
    for number in (port, port + 101, port + 102):
        with contextlib.suppress(OSError):
            raise AssertionError(f"port {number} still answers: {page(f'http://127.0.0.1:{number}/')}")
