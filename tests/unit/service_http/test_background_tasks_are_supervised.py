"""Tasks and threads are started in few places."""

import ast
from pathlib import Path

SERVICE = Path(__file__).parents[3] / "service"
STARTS = {"create_task", "ensure_future", "TaskGroup", "to_thread", "run_in_executor", "Thread", "ThreadPoolExecutor"}
ALLOWED = {
    "observe/supervisor.py": "it starts them all",
    "observe/detached_thread.py": "the thread behind Supervisor.read",
    "engine/worker_threads.py": "threads of the engine, which ends when one of them fails",
}


def started_in(path: Path) -> set[str]:
    """Names of functions called in a file that start tasks or threads."""
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = {call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls}
    return names & STARTS


def test_no_task_and_no_thread_is_started_outside_the_supervisor() -> None:
    """A background task could fail without a log line, a metric or a sentence in /readyz."""
    found = {str(path.relative_to(SERVICE)): started for path in SERVICE.rglob("*.py") if (started := started_in(path))}
    assert found.keys() == ALLOWED.keys(), found


def test_the_check_sees_each_way_to_start_one(tmp_path: Path) -> None:
    """The test above would pass even if the service started tasks elsewhere."""
    path = tmp_path / "module.py"
    for start in STARTS:
        path.write_text(f"import asyncio\nasyncio.{start}(work)\n")
        assert started_in(path) == {start}
