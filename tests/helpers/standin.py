"""A stand-in for Modal's control plane: Modal's own client talks to it on 127.0.0.1.

    with Standin() as modal_here:
        with app.run():
            function.remote(3)

Real: the client, every message between it and the server, and Modal's container
entrypoint, which a subprocess of this Python runs each input in. It gets an empty
environment and the files that the image adds; so a function cannot lean on what lies
around here.

Imitated: apps, functions (remote, spawn, gather), cancelling, exceptions, and `modal
run`, which shows the logs when the app has ended. Volumes: a container sees what was
committed before it started or reloaded, and what it did not commit is lost if it is
killed. Their mount path becomes a link to what the container that works sees; a path at
the root, such as /runs, is moved to `folder` / "runs", also in the source files that
travel.

Not imitated: GPUs, image builds (they are recorded; packages are those installed here),
two containers that work at once on one function or mount path, retries, limits of time
and memory, preemption, blobs (payloads travel inline), secrets, classes, generators,
map, deletions and background commits in Volumes, and any check of a token.
"""

# ruff: noqa: N802 - Modal names the RPCs

import asyncio
import collections
import contextlib
import contextvars
import itertools
import os
import shutil
import sys
import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import grpclib
import grpclib.const
import grpclib.server
import modal
import modal.config
from aiohttp import web
from modal_proto import api_pb2 as pb

SUCCESS = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_SUCCESS)
LIMIT = 1 << 30  # bytes that travel inline
BLOCK = 8 << 20  # bytes that a Volume hands out at a time
HEADER = "x-standin-function"  # a container's messages tell whose it is
SENDER = contextvars.ContextVar("SENDER")


@dataclass
class Input:
    """One argument of one call, on its way to a container and back."""

    id: str
    call_id: str
    function_id: str
    item: pb.FunctionPutInputsItem
    done: bool = False


@dataclass
class Call:
    """What `spawn`, `remote` or `map` began."""

    kind: int
    inputs: list[Input] = field(default_factory=list)
    outputs: list[pb.FunctionGetOutputsItem] = field(default_factory=list)


def carry(source, target):
    """Bring what is new in one folder to another, as a Volume's commit does."""
    for path in source.rglob("*"):
        copy = target / path.relative_to(source)
        if path.is_dir():
            copy.mkdir(exist_ok=True)
        elif not copy.exists() or copy.stat().st_mtime_ns < path.stat().st_mtime_ns:
            shutil.copy2(path, copy)


class Standin:
    """The server. `calls` counts RPCs; `unknown` and `errors` tell what went wrong.

    `cancelled` holds the ids of cancelled calls, `stopped` why each app stopped,
    `images` what was asked to be built.
    """

    def __init__(self):
        self.calls = collections.Counter()
        self.unknown, self.errors, self.cancelled, self.stopped = [], [], [], []
        self.images, self.functions, self.containers = {}, {}, {}
        self._ids = collections.defaultdict(lambda: itertools.count(1))
        self._calls, self._inputs, self._inboxes, self._running = {}, {}, {}, {}
        self._tasks, self._mounts, self._blobs = {}, {}, {}
        self._links, self._ended = set(), set()

    # Starting and stopping, from the test's thread

    def __enter__(self):
        self._temporary = tempfile.TemporaryDirectory(prefix="standin-")
        self.folder = Path(self._temporary.name)
        ready = threading.Event()
        serving = self._serve(ready)
        self._thread = threading.Thread(target=asyncio.run, args=(serving,))
        self._thread.start()
        ready.wait()
        self.env = {
            "MODAL_SERVER_URL": self.url,
            "MODAL_TOKEN_ID": "ak-standin",
            "MODAL_TOKEN_SECRET": "as-standin",
            "MODAL_CONFIG_PATH": str(self.folder / "modal.toml"),
            "MODAL_DISABLE_API_PROXY": "1",
        }
        self._patches = contextlib.ExitStack()
        self._patches.enter_context(mock.patch.dict(os.environ, self.env))
        # What was read of ~/.modal.toml at import.
        profiles = mock.patch.object(modal.config, "_user_config", {})
        self._patches.enter_context(profiles)
        modal.client._Client._set_env_client(None)  # or another server is asked
        return self

    def __exit__(self, *_):
        modal.Client.from_env().close()  # or the next server would be asked here
        self._patches.close()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()
        for link in self._links:
            link.unlink(missing_ok=True)
        self._temporary.cleanup()

    async def _serve(self, ready):
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._news = asyncio.Condition()
        server = grpclib.server.Server(self.services())
        await server.start("127.0.0.1", 0)
        port = server._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        files_server = await self._serve_volumes()
        ready.set()
        await self._stop.wait()
        for process in self.containers.values():
            process.kill()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await files_server.cleanup()
        server.close()
        await server.wait_closed()

    async def _serve_volumes(self):
        """Hand out the files of Volumes by plain HTTP, as Modal does."""
        kept = self.volume("").resolve()
        kept.mkdir()
        site = web.Application()
        site.router.add_static("/", kept)
        runner = web.AppRunner(site)
        await runner.setup()
        listener = web.TCPSite(runner, "127.0.0.1", 0)
        await listener.start()
        port = listener._server.sockets[0].getsockname()[1]
        self.volumes_url = f"http://127.0.0.1:{port}"
        return runner

    def services(self):
        """What the server offers."""
        return [_Service(self)]

    def volume(self, name):
        """The folder that stands for a Volume."""
        return self.folder / "volumes" / name

    def _new(self, kind):
        return f"{kind}-{next(self._ids[kind])}"

    async def _tell(self):
        async with self._news:
            self._news.notify_all()

    # Apps, images, files, Volumes

    async def nothing(self, _):
        """Answer with an empty message."""

    ClientHello = AppHeartbeat = ContainerHello = ContainerHeartbeat = nothing

    async def EnvironmentGetOrCreate(self, _):
        settings = pb.EnvironmentSettings(image_builder_version="2025.06")
        return pb.EnvironmentGetOrCreateResponse(
            environment_id="en-1",
            metadata=pb.EnvironmentMetadata(name="main", settings=settings),
        )

    async def AppCreate(self, _):
        return pb.AppCreateResponse(app_id=self._new("ap"), app_page_url=self.url)

    async def AppPublish(self, _):
        return pb.AppPublishResponse(url=self.url)

    async def AppClientDisconnect(self, request):
        self.stopped.append(pb.AppDisconnectReason.Name(request.reason))
        ending = []
        for function_id, process in list(self.containers.items()):
            if self.functions[function_id][2] != request.app_id:
                continue
            inbox = self._inboxes[function_id]
            while not inbox.empty():
                inbox.get_nowait()
            ending.append(self._tasks[function_id])
            if self._running.get(function_id):
                process.kill()
            else:
                inbox.put_nowait(pb.FunctionGetInputsItem(kill_switch=True))
        await asyncio.gather(*ending)  # its Volumes are committed
        self._ended.add(request.app_id)
        await self._tell()

    async def AppGetLogs(self, request):
        """Tell when an app has ended, and before that all that it has printed."""
        async with self._news:
            await self._news.wait_for(lambda: request.app_id in self._ended)
        for function_id, (_, _, app_id) in self.functions.items():
            log = self.folder / function_id / "log"
            if app_id == request.app_id and log.exists():
                stdout = pb.FILE_DESCRIPTOR_STDOUT
                line = pb.TaskLogs(data=log.read_text(), file_descriptor=stdout)
                yield pb.TaskLogsBatch(function_id=function_id, items=[line])
        yield pb.TaskLogsBatch(app_done=True)

    async def ImageGetOrCreate(self, request):
        image_id = self._new("im")
        self.images[image_id] = request.image
        built = pb.ImageMetadata(image_builder_version=request.builder_version)
        return pb.ImageGetOrCreateResponse(
            image_id=image_id, result=SUCCESS, metadata=built
        )

    async def MountBatchedCheckExistence(self, request):
        missing = [h for h in request.sha256_hex_hashes if h not in self._blobs]
        return pb.MountBatchedCheckExistenceResponse(missing_sha256_hex_hashes=missing)

    async def MountPutFile(self, request):
        if request.WhichOneof("data_oneof") == "data":
            self._blobs[request.sha256_hex] = request.data
        return pb.MountPutFileResponse(exists=request.sha256_hex in self._blobs)

    async def MountGetOrCreate(self, request):
        mount_id = self._new("mo")
        self._mounts[mount_id] = list(request.files)
        return pb.MountGetOrCreateResponse(mount_id=mount_id)

    async def VolumeGetOrCreate(self, request):
        name = request.deployment_name
        self.volume(name).mkdir(parents=True, exist_ok=True)
        return pb.VolumeGetOrCreateResponse(
            volume_id=f"vo-{name}",
            version=request.version,
            metadata=pb.VolumeMetadata(name=name, version=request.version),
        )

    def _committed(self, volume_id):
        return self.volume(volume_id.removeprefix("vo-"))

    def _view(self, function_id, volume_id):
        """What a function's container sees of a Volume."""
        return self.folder / function_id / "volumes" / volume_id

    async def VolumeCommit(self, request):
        volume_id = request.volume_id
        carry(self._view(SENDER.get(), volume_id), self._committed(volume_id))

    async def VolumeReload(self, request):
        volume_id = request.volume_id
        carry(self._committed(volume_id), self._view(SENDER.get(), volume_id))

    async def VolumeListFiles(self, request):
        """The files under a path; outside, only what is committed is seen."""
        root = self._committed(request.volume_id)
        place = root / request.path.lstrip("/")
        if not place.exists():
            raise grpclib.GRPCError(grpclib.Status.NOT_FOUND, "No such file")
        found = place.glob("**/*" if request.recursive else "*")
        for path in sorted(found):
            kind = pb.FileEntry.DIRECTORY if path.is_dir() else pb.FileEntry.FILE
            name, size = str(path.relative_to(root)), path.stat().st_size
            entry = pb.FileEntry(path=name, type=kind, size=size)
            yield pb.VolumeListFilesResponse(entries=[entry])

    async def VolumeGetFile2(self, request):
        path = self._committed(request.volume_id) / request.path
        if not path.is_file():
            raise grpclib.GRPCError(grpclib.Status.NOT_FOUND, "No such file")
        size = path.stat().st_size
        assert size <= BLOCK, "one block a file"
        url = f"{self.volumes_url}/{path.relative_to(self.volume(''))}"
        return pb.VolumeGetFile2Response(get_urls=[url], size=size, len=size)

    # Functions and calls

    async def FunctionPrecreate(self, request):
        function_id = request.existing_function_id or self._new("fu")
        handle = pb.FunctionHandleMetadata(
            function_name=request.function_name,
            function_type=request.function_type,
            app_id=request.app_id,
            definition_id=f"de-{function_id}",
            function_schema=request.function_schema,
            supported_input_formats=request.supported_input_formats,
            supported_output_formats=request.supported_output_formats,
            max_object_size_bytes=LIMIT,
            max_async_object_size_bytes=LIMIT,
        )
        self.functions[function_id] = (None, handle, request.app_id)
        return pb.FunctionPrecreateResponse(
            function_id=function_id, handle_metadata=handle
        )

    async def FunctionCreate(self, request):
        function_id = request.existing_function_id
        definition = request.function
        ranked = pb.FunctionData.RankedFunction(function=definition)
        data = pb.FunctionData(ranked_functions=[ranked])
        data.timeout_secs = definition.timeout_secs
        handle = self.functions[function_id][1]
        self.functions[function_id] = (definition, handle, request.app_id)
        return pb.FunctionCreateResponse(
            function_id=function_id,
            function=definition,
            function_data=data,
            handle_metadata=handle,
        )

    async def FunctionMap(self, request):
        call_id = self._new("fc")
        self._calls[call_id] = Call(request.function_call_invocation_type)
        put = [
            self._put(call_id, request.function_id, item)
            for item in request.pipelined_inputs
        ]
        return pb.FunctionMapResponse(
            function_call_id=call_id,
            pipelined_inputs=put,
            sync_client_retries_enabled=False,
            max_inputs_outstanding=1000,
        )

    def _put(self, call_id, function_id, item):
        one = Input(f"in-{call_id}-{item.idx}", call_id, function_id, item)
        self._inputs[one.id] = one
        self._calls[call_id].inputs.append(one)
        inbox = self._inboxes.setdefault(function_id, asyncio.Queue())
        waiting = pb.FunctionGetInputsItem(
            input_id=one.id,
            input=item.input,
            function_call_id=call_id,
            function_call_invocation_type=self._calls[call_id].kind,
            function_map_idx=item.idx,
        )
        inbox.put_nowait(waiting)
        if function_id not in self._tasks:
            container = self._container(function_id)
            self._tasks[function_id] = asyncio.create_task(container)
        return pb.FunctionPutInputsResponseItem(idx=item.idx, input_id=one.id)

    async def FunctionGetOutputs(self, request):
        call = self._calls[request.function_call_id]
        start = int(request.last_entry_id.partition("-")[0] or 0)

        def ready():
            return call.outputs[start:]

        if request.timeout and not ready():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(request.timeout), self._news:
                    await self._news.wait_for(ready)
        found = ready()
        return pb.FunctionGetOutputsResponse(
            outputs=found,
            idxs=[one.idx for one in found],
            last_entry_id=f"{start + len(found)}-0",
            num_unfinished_inputs=sum(not one.done for one in call.inputs),
        )

    async def FunctionCallCancel(self, request):
        self.cancelled.append(request.function_call_id)
        ended = pb.GenericResult(status=pb.GenericResult.GENERIC_STATUS_TERMINATED)
        for one in self._calls[request.function_call_id].inputs:
            if not one.done:
                await self._finish(one, ended)
                if self._running.get(one.function_id) is one:
                    self.containers[one.function_id].kill()

    async def _finish(self, one, result, data_format=0):
        if one.done:
            return
        one.done = True
        idx, name = one.item.idx, one.id
        output = pb.FunctionGetOutputsItem(
            result=result, idx=idx, input_id=name, data_format=data_format
        )
        self._calls[one.call_id].outputs.append(output)
        await self._tell()

    # The container and what it asks

    async def _container(self, function_id):
        """Run containers of a function, one after the other, while it has inputs."""
        try:
            await self._run_container(function_id)
        except Exception as error:
            self.errors.append(("the container", error))
        code = getattr(self.containers.pop(function_id, None), "returncode", None)
        del self._tasks[function_id]
        one = self._running.pop(function_id, None)
        fate = pb.GenericResult(
            status=pb.GenericResult.GENERIC_STATUS_FAILURE,
            exception=f"the container ended with code {code}",
        )
        inbox = self._inboxes[function_id]
        if one:
            await self._finish(one, fate)
        elif code != 0:  # it never came to run anything, nor would another
            while not inbox.empty():
                waiting = self._inputs[inbox.get_nowait().input_id]
                await self._finish(waiting, fate)
        left = not inbox.empty() and not self._stop.is_set()
        if left and function_id not in self._tasks:
            container = self._container(function_id)
            self._tasks[function_id] = asyncio.create_task(container)

    async def _run_container(self, function_id):
        definition, _, app_id = self.functions[function_id]
        handles = {name: handle for name, (_, handle, _) in self.functions.items()}
        objects = []
        for other in definition.object_dependencies:
            if other.object_id not in handles:
                objects.append(pb.Object(object_id=other.object_id))
        for name, handle in handles.items():
            one = pb.Object(object_id=name, function_handle_metadata=handle)
            objects.append(one)
        ids = {one.function_name: name for name, one in handles.items()}
        layout = pb.AppLayout(objects=objects, function_ids=ids)
        arguments = pb.ContainerArguments(
            task_id=f"ta-{function_id}",
            function_id=function_id,
            app_id=app_id,
            function_def=definition,
            environment_name="main",
            app_layout=layout,
        )
        home = self.folder / function_id
        (home / "root").mkdir(parents=True, exist_ok=True)
        (home / "arguments").write_bytes(arguments.SerializeToString())
        for mount_id in definition.mount_ids:
            for file in self._mounts[mount_id]:
                path = home / file.filename.lstrip("/")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self._moved(self._blobs[file.sha256_hex], definition))
        self._mount(function_id, definition)
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(home / "root"),
            "PYTHONPATH": str(home / "root"),
            "PYTHONUNBUFFERED": "1",
            "MODAL_SERVER_URL": self.url,
            "MODAL_IS_REMOTE": "1",
            "MODAL_TASK_ID": arguments.task_id,
            "MODAL_CONTAINER_ARGUMENTS_PATH": str(home / "arguments"),
            "MODAL_ENVIRONMENT": "main",
            "MODAL_OVERRIDE_HEADERS": f"{HEADER}:{function_id}",
            "OMP_NUM_THREADS": "1",  # as Modal sets it for a core
        }
        with (home / "log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "modal._container_entrypoint"),
                **{"env": env, "cwd": home / "root", "stdout": log, "stderr": log},
            )
            self.containers[function_id] = process
            await process.wait()

    def _place(self, mount):
        """Where a Volume lies for functions here: at the root nobody may write."""
        path = Path(mount.mount_path)
        return self.folder / path.name if path.parent == Path("/") else path

    def _moved(self, data, definition):
        """A source file, with the mount paths that are other ones here."""
        for mount in definition.volume_mounts:
            place = str(self._place(mount))
            if place != mount.mount_path:
                old, new = f'"{mount.mount_path}', f'"{place}'
                data = data.replace(old.encode(), new.encode())
        return data

    def _mount(self, function_id, definition):
        """Give a new container its own view of each Volume."""
        home = self.folder / function_id / "volumes"
        shutil.rmtree(home, ignore_errors=True)  # what nobody committed
        for mount in definition.volume_mounts:
            view = self._view(function_id, mount.volume_id)
            shutil.copytree(self._committed(mount.volume_id), view)

    def _link(self, function_id):
        """Let the mount paths lead to what this container sees: it works now."""
        for mount in self.functions[function_id][0].volume_mounts:
            link = self._place(mount)
            link.unlink(missing_ok=True)
            link.symlink_to(self._view(function_id, mount.volume_id))
            self._links.add(link)

    async def FunctionGetInputs(self, request):
        function_id = request.function_id
        item = await self._inboxes[function_id].get()
        while not item.kill_switch and self._inputs[item.input_id].done:
            item = await self._inboxes[function_id].get()
        if not item.kill_switch:
            self._running[function_id] = self._inputs[item.input_id]
            self._link(function_id)
        return pb.FunctionGetInputsResponse(inputs=[item])

    async def FunctionPutOutputs(self, request):
        for output in request.outputs:
            one = self._inputs[output.input_id]
            self._running.pop(one.function_id, None)
            await self._finish(one, output.result, output.data_format)

    async def TaskResult(self, request):
        """The container could not load the function."""
        self.errors.append(("the container", request.result.exception))


class _Service:
    """Offers the methods that are named after RPCs; the .proto tells their types."""

    def __init__(self, standin):
        self.standin = standin

    def __mapping__(self):
        return self._handlers(pb.DESCRIPTOR.services_by_name["ModalClient"])

    def _handlers(self, service):
        handlers = {}
        for method in service.methods:
            sides = (method.client_streaming, method.server_streaming)
            kind = "_".join("STREAM" if side else "UNARY" for side in sides)
            handlers[f"/{service.full_name}/{method.name}"] = grpclib.const.Handler(
                self._handler(method),
                grpclib.const.Cardinality[kind],
                method.input_type._concrete_class,
                method.output_type._concrete_class,
            )
        return handlers

    def _handler(self, method):
        name, standin = method.name, self.standin
        answer = getattr(standin, name, None)

        async def handle(stream):
            standin.calls[name] += 1
            SENDER.set(stream.metadata.get(HEADER))
            if answer is None:
                standin.unknown.append(name)
                status = grpclib.Status.UNIMPLEMENTED
                raise grpclib.GRPCError(status, f"the stand-in has no {name}")
            try:
                request = await stream.recv_message()
                if method.server_streaming:
                    async for part in answer(request):
                        await stream.send_message(part)
                    return
                reply = await answer(request)
            except grpclib.GRPCError:  # meant for the client
                raise
            except Exception as error:  # as UNKNOWN the client would try again
                standin.errors.append((name, error))
                status = grpclib.Status.FAILED_PRECONDITION
                raise grpclib.GRPCError(status, f"{name}: {error!r}") from error
            empty = method.output_type._concrete_class
            await stream.send_message(empty() if reply is None else reply)

        return handle
