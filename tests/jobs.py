"""What tests of `--submit` share: a job client without a cluster."""

import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ray.job_submission import JobStatus


@dataclass
class Job:
    submission_id: str
    status: JobStatus
    metadata: dict[str, str] | None = None
    driver_exit_code: int | None = None
    message: str = ""


@dataclass
class Client:
    """What the job client of Ray does, without a cluster; `log` holds an exception where the connection breaks."""

    jobs: list[Job] = field(default_factory=list)
    log: list[Any] = field(default_factory=lambda: ["one\n", "two\n"])
    ends: tuple[JobStatus, int | None] = (JobStatus.SUCCEEDED, 0)
    sent: dict[str, Any] = field(default_factory=dict)
    files: set[str] = field(default_factory=set)
    error: Exception | None = None
    address: str = ""
    environment: dict[str, str] = field(default_factory=dict)

    def __call__(self, address: str) -> "Client":
        self.address, self.environment = address, dict(os.environ)
        if self.error:
            raise self.error
        return self

    def list_jobs(self) -> list[Job]:
        return self.jobs

    def submit_job(self, **sent: Any) -> None:
        self.sent = sent
        if folder := sent["runtime_env"].get("working_dir"):
            self.files = {str(file.relative_to(folder)) for file in Path(folder).rglob("*") if file.is_file()}
        self.jobs.append(Job(sent["submission_id"], JobStatus.RUNNING, sent["metadata"]))

    async def tail_job_logs(self, identity: str) -> AsyncIterator[str]:
        while self.log:
            text = self.log.pop(0)
            if isinstance(text, BaseException):
                raise text
            yield text
        self.get_job_info(identity).status, self.get_job_info(identity).driver_exit_code = self.ends

    def get_job_info(self, identity: str) -> Job:
        (job,) = [job for job in self.jobs if job.submission_id == identity]
        return job

    def get_job_logs(self, identity: str) -> str:
        return "first\nsearch: 3/20\n"

    def stop_job(self, identity: str) -> bool:
        self.get_job_info(identity).status = JobStatus.STOPPED
        return True
