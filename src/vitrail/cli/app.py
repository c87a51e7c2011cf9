"""The command line: parse, call one function of `api`, show what it returned. The only file that exits."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter

from vitrail.cli.data import check_data, pack, resize_data
from vitrail.cli.deploy import convert, export, quantize
from vitrail.cli.embedding import embed
from vitrail.cli.explanation import explain
from vitrail.cli.finetuning import finetune
from vitrail.cli.inference import bench, evaluate, predict, verify
from vitrail.cli.pretraining import pretrain
from vitrail.cli.reproduction import reproduce
from vitrail.cli.serving import serve
from vitrail.cli.signals import tell_interrupted
from vitrail.cli.token_labels import make_token_labels
from vitrail.cli.training import bench_data, config, doctor, models, preview, train
from vitrail.cli.tuning import tune
from vitrail.cli.weights import weights
from vitrail.distributed.launch import (
    is_main_process,
    is_said_by_first_process,
    understand_launch,
    without_local_rank,
)
from vitrail.errors import (
    ConfigError,
    Interrupted,
    LostWorker,
    MissingExtra,
    OutputLost,
    Stopped,
    TrainingError,
    VitrailError,
    command,
    escape_text,
    naming_flags,
)

SPEAK_AFTER_S = 3.0
"""Until a process that is not the first of its machine says what is wrong, where the first does not
say the same."""
ENDED_AFTER_S = 12.0
"""Until a process that torchrun was told to end ends by itself."""
ASK_AGAIN_S = 2.0
"""Until torchrun is told once more to end, as it loses a signal that comes within a destructor or a
lock's callback."""
LONGEST_WORD, SHOWN_OF_WORD = 1_000, 200
"""Characters of a word, such as a path, from which on an error shows no more than its beginning,
and how many then."""
COMMANDS = (
    train,
    finetune,
    pretrain,
    tune,
    reproduce,
    evaluate,
    predict,
    embed,
    explain,
    make_token_labels,
    convert,
    export,
    quantize,
    bench,
    serve,
    models,
    weights,
    config,
    check_data,
    preview,
    bench_data,
    pack,
    resize_data,
    verify,
    doctor,
)

app = App(
    name="vitrail",
    help="Vision transformers that look inside the patch: TNT, T2T-ViT, Twins and PyramidTNT.",
    version_flags=["--version"],
    default_parameter=Parameter(negative=""),
    result_action="return_value",
    suppress_keyboard_interrupt=False,  # main says that it was stopped
)
for one in COMMANDS:
    app.command(one)


def main(tokens: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit: 0, or 2 with one line for what the user can mend."""
    with naming_flags():
        _run(list(sys.argv[1:] if tokens is None else tokens))


def _run(arguments: list[str]) -> NoReturn:
    """Run a command, and exit as `main` says."""
    debug = "--debug" in arguments
    arguments = [token for token in arguments if token != "--debug"]
    try:
        arguments = without_local_rank(arguments, os.environ)
        understand_launch(os.environ, arguments[0] if arguments else "")
        arguments, notes = understood(arguments)
        if is_main_process():
            for note in notes:
                print(escape_text(note), file=sys.stderr)
        status = app(arguments, exit_on_error=False, print_error=False)
        sys.stdout.flush()  # what cannot be shown is found here, while it can be said
    except (Interrupted, KeyboardInterrupt) as error:
        status, line = tell_interrupted(error, arguments[0] if arguments else "")
        if status == os.EX_TEMPFAIL:
            _tell_torchrun(line, restart=False)
    except Stopped as error:
        if is_main_process():
            print(escape_text(error), file=sys.stderr)
        status = os.EX_TEMPFAIL
        _tell_torchrun(escape_text(error), restart=False)
    except VitrailError as error:
        if debug:
            raise
        status = os.EX_TEMPFAIL if isinstance(error, LostWorker) else 2
        _fail(
            str(error),
            restart=not isinstance(error, ConfigError | MissingExtra | OutputLost | TrainingError),
            status=status,
        )
    except CycloptsError as error:
        problem = _tell_lacking(error) or str(error).rstrip(".")
        shown = f"`{command(arguments[0], '--help')}` shows its options"
        if arguments[0] not in app:
            shown = f"`{command('--help')}` shows the commands"
        _fail(f"{problem}; {shown}", restart=False)
    except OSError as error:  # a path that may not be looked at, or is too long to be one
        if debug or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}; choose another path, or mend its permissions")
    sys.exit(status or 0)


def _tell_lacking(error: CycloptsError) -> str:
    """Say which argument a command lacks; empty where something else is wrong, or one is there without its value."""
    lacking = error.argument
    if (
        not isinstance(error, MissingArgumentError)
        or error.keyword
        or lacking is None
        or lacking.tokens
    ):
        return ""
    # --checkpoint is the name of what mostly stands without one
    is_named = lacking.field_info.kind is lacking.field_info.KEYWORD_ONLY
    name = lacking.name if is_named else lacking.name.lstrip("-").upper()
    choices = lacking.get_choices() or ()
    one_of = f", one of {', '.join(choices)}" if choices else ""
    return f"vitrail {' '.join(error.command_chain or ())} needs {name}{one_of}"


def understood(tokens: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a command with the flags of other projects as ours, and a note for each that it has no use for."""
    from vitrail.migrate.flags import COMMANDS, translate_flags

    if not tokens or tokens[0] not in COMMANDS:
        return list(tokens), []
    # export is to come
    arguments = app[tokens[0]].assemble_argument_collection() if tokens[0] in app else []
    own = {
        name: one.hint is not bool
        for one in arguments
        for name in one.names
        if name.startswith("--")
    }
    return translate_flags(tokens, {"--help": False, "--version": False, **own})


def _fail(message: str, restart: bool = True, status: int = 2) -> NoReturn:
    """Say what is wrong in one line and exit; without `restart` it would be wrong the next time too."""
    who = "error" if is_main_process() else f"error in process {os.environ['RANK']}"
    words = message.split()
    for place, word in enumerate(words):
        if len(word) > LONGEST_WORD:
            words[place] = f"{word[:SHOWN_OF_WORD]}..."
    line = escape_text(" ".join(words))  # a file's name may hold what a terminal obeys
    if os.environ.get("LOCAL_RANK", "0") != "0" and is_said_by_first_process(
        line, os.environ, SPEAK_AFTER_S
    ):
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        time.sleep(ENDED_AFTER_S)  # torchrun ends it before
        sys.exit(status)
    print(f"{who}: {line}", file=sys.stderr)
    _tell_torchrun(line, restart)
    sys.exit(status)


def _tell_torchrun(line: str, restart: bool) -> None:
    """Let torchrun say in its own report why a process ended, and keep it from starting all of them again.

    It restarts whatever failed as long as it may; only a signal ends it before, which one process
    of a machine sends.
    """
    if (report := os.environ.get("TORCHELASTIC_ERROR_FILE")) is not None:
        # as torch.distributed.elastic writes it, whose import takes a second; a traceback would be
        # shown instead
        told = {
            "message": {
                "message": line,
                "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))},
            }
        }
        with suppress(OSError):  # the line itself was printed
            Path(report).write_text(json.dumps(told))
    left = [
        int(os.environ.get(f"TORCHELASTIC_{name}", "0"))
        for name in ("MAX_RESTARTS", "RESTART_COUNT")
    ]
    if not restart and left[0] > left[1] and os.environ["LOCAL_RANK"] == "0":
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        # were this process gone before the signal is heard, all would be started again
        torchrun, deadline = os.getppid(), time.monotonic() + ENDED_AFTER_S
        while os.getppid() == torchrun and time.monotonic() < deadline:
            os.kill(torchrun, signal.SIGTERM)
            time.sleep(ASK_AGAIN_S)
