"""The stand-in for Modal's control plane, with sandboxes.

Real: Modal's client, and every message between it, the control plane and the command
router of a sandbox. A command runs here, in a folder with the files that the image adds
and an empty environment. Not imitated: isolation, the blocked network (it is recorded),
limits of CPU and memory, idle time, images' packages.
"""

# ruff: noqa: N802 - Modal names the RPCs

import asyncio
import base64
import json
import os
import sys
import time
from dataclasses import dataclass, field

import grpclib.const
import grpclib.server
import standin
from modal_proto import api_pb2 as pb
from modal_proto import task_command_router_pb2 as router

OUT = router.TASK_EXEC_STDIO_FILE_DESCRIPTOR_STDOUT


@dataclass
class Sandbox:
    """A sandbox: what it was created with, and whether it has ended."""

    id: str
    definition: pb.Sandbox
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    commands: dict = field(default_factory=dict)


class SandboxStandin(standin.Standin):
    """`sandboxes` holds all that were created; `end` makes one vanish.

    So many creations are refused as `refuse` says, and `broken` files are left out.
    """

    def __init__(self):
        super().__init__()
        self.sandboxes, self.refuse, self.broken = {}, 0, None

    def services(self):
        """The control plane, and the router of commands."""
        return [standin._Service(self), _Router(self)]

    def end(self, task_id):
        """End a sandbox and what runs in it, from the test's thread."""
        self._loop.call_soon_threadsafe(self._end, self.sandboxes[task_id])

    def _end(self, sandbox):
        sandbox.ended.set()
        for process in sandbox.commands.values():
            if process.returncode is None:
                process.kill()

    def _access(self):
        claims = {"exp": time.time() + 3600}
        parts = [json.dumps(one).encode() for one in ({"alg": "none"}, claims)]
        coded = [base64.urlsafe_b64encode(p).decode().rstrip("=") for p in parts]
        return {"url": self.url, "jwt": ".".join([*coded, "x"])}

    async def AppGetOrCreate(self, _):
        return pb.AppGetOrCreateResponse(app_id=self._new("ap"))

    async def AuthTokenGet(self, _):
        return pb.AuthTokenGetResponse(token=self._access()["jwt"])

    async def SandboxCreateV2(self, request):
        if self.refuse:
            self.refuse -= 1
            status = grpclib.const.Status.RESOURCE_EXHAUSTED
            raise grpclib.GRPCError(status, "too many sandboxes a second")
        task_id = self._new("ta")
        one = Sandbox(f"sb-{task_id}V", request.definition)
        self.sandboxes[task_id] = one
        home = self.folder / task_id
        (home / "root").mkdir(parents=True)
        for mount_id in request.definition.mount_ids:
            for file in self._mounts[mount_id]:
                path = home / file.filename.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                if path.name != self.broken:
                    path.write_bytes(self._blobs[file.sha256_hex])
        return pb.SandboxCreateV2Response(
            sandbox_id=one.id,
            task_id=task_id,
            metadata=pb.SandboxHandleMetadata(app_id=request.app_id),
            command_router_access=pb.CommandRouterAccess(**self._access()),
        )

    def _named(self, sandbox_id):
        return next(one for one in self.sandboxes.values() if one.id == sandbox_id)

    async def SandboxGetCommandRouterAccess(self, _):
        return pb.SandboxGetCommandRouterAccessResponse(**self._access())

    async def SandboxTerminateV2(self, request):
        self._end(self._named(request.sandbox_id))

    async def SandboxWaitV2(self, request):
        ended = self._named(request.sandbox_id).ended.is_set()
        status = pb.GenericResult.GENERIC_STATUS_TERMINATED if ended else 0
        return pb.SandboxWaitResponse(result=pb.GenericResult(status=status))

    # The router of commands

    async def TaskExecStart(self, request):
        one = self.sandboxes[request.task_id]
        if one.ended.is_set():
            status = grpclib.const.Status.NOT_FOUND
            raise grpclib.GRPCError(status, "the sandbox has ended")
        root = self.folder / request.task_id / "root"
        command = [sys.executable if a == "python" else a for a in request.command_args]
        one.commands[request.exec_id] = await asyncio.create_subprocess_exec(
            *command,
            cwd=root.parent / request.workdir.lstrip("/"),
            env={"PATH": os.environ["PATH"], "HOME": str(root)},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        return router.TaskExecStartResponse()

    def _process(self, request):
        return self.sandboxes[request.task_id].commands[request.exec_id]

    async def TaskExecStdinWrite(self, request):
        stdin = self._process(request).stdin
        if request.data:
            stdin.write(request.data)
        if request.eof:
            stdin.close()
        return router.TaskExecStdinWriteResponse()

    async def TaskExecStdioRead(self, request):
        process = self._process(request)
        out = process.stdout if request.file_descriptor == OUT else process.stderr
        while data := await out.read(1 << 16):
            yield router.TaskExecStdioReadResponse(data=data)

    async def TaskExecWait(self, request):
        code = await self._process(request).wait()
        told = {"code": code} if code >= 0 else {"signal": -code}
        return router.TaskExecWaitResponse(**told)

    async def TaskExecPoll(self, request):
        code = self._process(request).returncode
        return router.TaskExecPollResponse(**({} if code is None else {"code": code}))


class _Router(standin._Service):
    """Offers the commands of sandboxes, some of which answer in a stream."""

    def __mapping__(self):
        return self._handlers(router.DESCRIPTOR.services_by_name["TaskCommandRouter"])
