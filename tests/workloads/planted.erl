%% SPDX-License-Identifier: Apache-2.0
%% Plants events in a VM, as many as a command says, so that an observer's counts can be compared with
%% the truth. Each command answers one line, "done NAME COUNT", when all of it has happened.
%%
%%   command            plants exactly                        and besides
%%   spawns N           N spawns, N exits (normal)
%%   exits CLASS N      N spawns, N exits of CLASS            N exit signals, if CLASS is killed
%%                      (normal, shutdown, shutdown_tuple, killed, error, other)
%%   messages N         N sends, N receives
%%   gc_major N         N major collections, each reclaiming 100 words and a few
%%   gc_minor N         N minor collections, likewise
%%   crash KIND         a spawn and an exit, as crashing.erl says
%%   hibernates N       N hibernations, N sends, N receives   1 spawn and exit, N collections (hibernating)
%%   ports N            N ports opened, N closed
%%   programs N         the same with /bin/true               N receives (the answer to the opening)
%%   busy_port K        1 port busy, 1 not busy, K processes  K spawns and exits, 2 ports, some receives
%%                      suspended on it
%%   code_loads N       N modules loaded                      some 100 messages each, to purge the old
%%   dirty_calls N      N native calls on a dirty scheduler
%%   long_bifs N        N calls of a BIF, tens of milliseconds  some short calls of BIFs
%%                      each, on a dirty scheduler or not
%%   storm KIND N       events without end, until the line "stop" (then: done storm COUNT)
%%                      pingpong: N pairs, COUNT sends and as many receives
%%                      spawn: N spawners, COUNT spawns and exits (and those of the spawners)
%%                      gc: N collectors, COUNT collections asked for
%%   stats              nothing; answers "stats key=value ..." with what the VM itself counts
%%   natives            nothing; answers "natives M:F/A,...", the VM's BIFs and, after a space, NIFs
%%   who                nothing; answers "who MAIN PARTNER", two pids
%%
%% Each command line is one receive. Collections come on their own as well: allocation asks for them.
%% Closing any port calls set_busy_port(Port, 0), so "not busy" is a change of state, not a call.
%% Nothing waits for a process by a message or a monitor, because these would be events too: the main
%% process yields until the process is no longer in the VM's table.
-module(planted).
-export([start/0]).
-export([main/0, partner/0, leave/1, blocked_writer/2, woken/1, wait/0]).
-export([pinger/2, ponger/0, spawner/2, collector/2]).

-define(ATONCE, 500).
-define(BURST, 16).

%% For erl -s planted.
start() ->
    %% A crash that was planted is no news: it is not logged, so its exit is all that happens.
    _ = erlang:system_flag(system_logger, undefined),
    %% A heap so large that the main process hardly ever collects on its own.
    spawn_opt(?MODULE, main, [], [{min_heap_size, 100000}]).

main() ->
    register(planted_main, self()),
    register(planted_partner, spawn(?MODULE, partner, [])),
    control:serve(fun warm_up/1, fun command/2).

%% Everything once: code is loaded, atoms are made, heaps have grown before the counting starts.
warm_up(_Control) ->
    [plant(Name, Arguments) || [Name | Arguments] <- [
        ["spawns", "1000"],
        ["exits", "normal", "3"], ["exits", "shutdown", "3"], ["exits", "shutdown_tuple", "3"],
        ["exits", "killed", "3"], ["exits", "error", "3"], ["exits", "other", "3"],
        ["crash", "error"], ["crash", "bif"], ["crash", "proc_lib"], ["messages", "1000"], ["gc_major", "3"], ["gc_minor", "3"], ["hibernates", "3"],
        ["ports", "3"], ["programs", "1"], ["busy_port", "2"], ["code_loads", "2"],
        ["dirty_calls", "3"], ["long_bifs", "1"], ["stats"], ["who"]]],
    [end_storm(begin_storm(Kind, 1)) || Kind <- ["pingpong", "spawn", "gc"]],
    ok.

command(Control, ["storm", Kind, N]) ->
    Storm = begin_storm(Kind, list_to_integer(N)),
    control:say(Control, "storming"),
    ["stop"] = control:next(Control),
    ["done storm ", integer_to_list(end_storm(Storm))];
command(_Control, [Name | Arguments]) ->
    try plant(Name, Arguments) of
        Count when is_integer(Count) -> ["done ", Name, " ", integer_to_list(Count)];
        Text -> Text
    catch
        Class:Reason -> io_lib:format("failed ~s ~0p", [Name, {Class, Reason}])
    end.

plant("exits", [Class, N]) -> exits(Class, list_to_integer(N));
plant("crash", [Kind]) -> gone([crashing:crash(Kind)]), 1;
plant("stats", []) -> stats();
plant("natives", []) -> natives();
plant("who", []) -> ["who ", pid_to_list(self()), " ", pid_to_list(whereis(planted_partner))];
plant(Name, [N]) -> plant_number(Name, list_to_integer(N)).

plant_number("spawns", N) -> exits("normal", N);
plant_number("messages", N) -> messages(N);
plant_number("gc_major", N) -> collect(major, N);
plant_number("gc_minor", N) -> collect(minor, N);
plant_number("hibernates", N) -> hibernates(N);
plant_number("ports", N) -> ports(N, 0);
plant_number("programs", N) -> programs(N, 0);
plant_number("busy_port", K) -> busy_port(K);
plant_number("code_loads", N) -> code_loads(N);
plant_number("dirty_calls", N) -> dirty_calls(N);
plant_number("long_bifs", N) -> long_bifs(N).

%%% Processes

exits(Class, N) ->
    batches(N, leaver(Class)),
    N.

leaver("normal") -> fun() -> spawn(?MODULE, leave, [normal]) end;
leaver("shutdown") -> fun() -> spawn(?MODULE, leave, [shutdown]) end;
leaver("shutdown_tuple") -> fun() -> spawn(?MODULE, leave, [{shutdown, planted}]) end;
leaver("killed") ->
    fun() ->
        Victim = spawn(?MODULE, wait, []),
        exit(Victim, kill),
        Victim
    end;
leaver("error") -> fun() -> spawn(?MODULE, leave, [error]) end;
leaver("other") -> fun() -> spawn(?MODULE, leave, [planted]) end.

%% A bounded number at once, so that N may be larger than the process table.
batches(0, _Spawn) -> ok;
batches(N, Spawn) ->
    Some = min(N, ?ATONCE),
    gone([Spawn() || _ <- lists:seq(1, Some)]),
    batches(N - Some, Spawn).

leave(normal) -> ok;
leave(error) -> error(badarg);
leave(Reason) -> exit(Reason).

wait() -> receive after infinity -> ok end.

%% Until none of Processes is in the table, not even as one that is about to exit.
gone(Processes) -> until(fun() -> Processes -- processes() =:= Processes end).

%% First in the hope that it takes a few microseconds, then by the millisecond. Neither is a message.
until(Holds) -> until(Holds, 1000).

until(Holds, Yields) ->
    case Holds() of
        true -> ok;
        false when Yields > 0 -> erlang:yield(), until(Holds, Yields - 1);
        false -> receive after 1 -> until(Holds, 0) end
    end.

times(0, _Do) -> ok;
times(N, Do) -> Do(), times(N - 1, Do).

%%% Messages

messages(N) ->
    Partner = whereis(planted_partner),
    times(N div (2 * ?BURST), fun() -> volley(Partner) end),
    times(N rem (2 * ?BURST), fun() -> self() ! planted, receive planted -> ok end end),
    N.

%% A few at once in each direction: mailboxes hold several, and the two schedulers both work.
volley(Partner) ->
    times(?BURST, fun() -> Partner ! {planted, self()} end),
    times(?BURST, fun() -> receive planted -> ok end end).

partner() ->
    receive {planted, From} -> From ! planted end,
    partner().

hibernates(N) ->
    Naps = atomics:new(1, []),
    Sleeper = spawn(?MODULE, woken, [Naps]),
    wake(Sleeper, Naps, 1, N),
    gone([Sleeper]),
    N.

wake(Sleeper, Naps, I, N) ->
    until(fun() -> atomics:get(Naps, 1) >= I end),
    case I of
        N -> Sleeper ! stop;
        _ -> Sleeper ! nap, wake(Sleeper, Naps, I + 1, N)
    end.

%% Called at the start and after each message that wakes.
woken(Naps) ->
    case atomics:get(Naps, 1) of
        0 -> nap(Naps);
        _ -> receive nap -> nap(Naps); stop -> ok end
    end.

nap(Naps) ->
    atomics:add(Naps, 1, 1),
    erlang:hibernate(?MODULE, woken, [Naps]).

%%% Garbage

collect(Type, N) ->
    times(N, fun() -> litter(), erlang:garbage_collect(self(), [{type, Type}]) end),
    N.

%% Fifty list cells of two words, that are garbage at once.
litter() -> length(lists:seq(1, 50)).

%%% Ports

ports(N, N) -> N;
ports(N, I) ->
    Port = open_port({spawn_driver, "tcp_inet"}, []),
    true = erlang:port_close(Port),
    ports(N, I + 1).

programs(N, N) -> N;
programs(N, I) ->
    closed(open_port({spawn_executable, "/bin/true"}, [])),
    programs(N, I + 1).

closed(Port) -> until(fun() -> not lists:member(Port, erlang:ports()) end).

%% A program that does not read until another one says so, through a FIFO. It keeps its end of the
%% pipe to the VM open (3>&1), because the VM takes the end of that for the end of the program.
busy_port(K) ->
    Gate = "/tmp/planted-" ++ os:getpid() ++ "-" ++ integer_to_list(erlang:unique_integer([positive])),
    Reader = shell(["mkfifo ", Gate, "; read go <", Gate, "; rm ", Gate, "; exec cat 3>&1 >/dev/null"]),
    %% More than a pipe takes (64 KiB): the rest waits in the VM and the port is busy.
    true = erlang:port_command(Reader, binary:copy(<<0>>, 1 bsl 20)),
    Written = atomics:new(1, []),
    Writers = [spawn(?MODULE, blocked_writer, [Reader, Written]) || _ <- lists:seq(1, K)],
    [until(fun() -> process_info(Writer, status) =:= {status, suspended} end) || Writer <- Writers],
    closed(shell(["until [ -p ", Gate, " ]; do :; done; echo go >", Gate])),
    gone(Writers),
    true = erlang:port_close(Reader),
    closed(Reader),
    atomics:get(Written, 1).

shell(Script) -> open_port({spawn_executable, "/bin/sh"}, [{args, ["-c", lists:flatten(Script)]}]).

blocked_writer(Port, Written) ->
    true = erlang:port_command(Port, <<1>>),
    atomics:add(Written, 1, 1).

%%% Code and native calls

code_loads(N) ->
    {planted_blank, Code, File} = code:get_object_code(planted_blank),
    times(N, fun() ->
        code:purge(planted_blank),
        {module, planted_blank} = code:load_binary(planted_blank, File, Code)
    end),
    N.

dirty_calls(N) ->
    times(N, fun() -> {ok, _} = file:read_file_info("/", [raw]) end),
    N.

%% By a name that the compiler does not know: the JIT calls a BIF that it knows straight, without a
%% function that could be hooked.
long_bifs(N) ->
    ToText = list_to_existing_atom("integer_to_list"),
    Number = 1 bsl 100000,
    times(N, fun() -> apply(erlang, ToText, [Number]) end),
    N.

%%% Storms

%% Two counters: 1 is set when the storm shall end, 2 sums up what the workers did.
begin_storm(Kind, N) ->
    Before = processes(),
    Storm = atomics:new(2, []),
    {Before, Storm, lists:append([storm(Kind, Storm) || _ <- lists:seq(1, N)])}.

end_storm({Before, Storm, Workers}) ->
    atomics:put(Storm, 1, 1),
    gone(Workers),
    gone(processes() -- Before), % what the workers spawned last
    atomics:get(Storm, 2).

storm("pingpong", Storm) ->
    Ponger = spawn(?MODULE, ponger, []),
    [Ponger, spawn(?MODULE, pinger, [Storm, Ponger])];
storm("spawn", Storm) -> [spawn(?MODULE, spawner, [Storm, 0])];
storm("gc", Storm) -> [spawn(?MODULE, collector, [Storm, 0])].

ended(Storm) -> atomics:get(Storm, 1) =:= 1.

pinger(Storm, Ponger) -> pinger(Storm, Ponger, 0).

pinger(Storm, Ponger, Sent) ->
    case ended(Storm) of
        true ->
            Ponger ! stop,
            atomics:add(Storm, 2, Sent + 1);
        false ->
            Ponger ! {ping, self()},
            receive pong -> pinger(Storm, Ponger, Sent + 2) end
    end.

ponger() ->
    receive
        {ping, From} -> From ! pong, ponger();
        stop -> ok
    end.

spawner(Storm, Spawned) ->
    case ended(Storm) of
        true -> atomics:add(Storm, 2, Spawned);
        false ->
            times(100, leaver("normal")),
            erlang:yield(), % behind the children in the queue, so that they do not pile up
            spawner(Storm, Spawned + 100)
    end.

collector(Storm, Collected) ->
    case ended(Storm) of
        true -> atomics:add(Storm, 2, Collected);
        false ->
            litter(),
            erlang:garbage_collect(),
            collector(Storm, Collected + 1)
    end.

%%% What the VM itself says

natives() ->
    Nifs = [{Module, Name, Arity}
            || {Module, _} <- code:all_loaded(), {Name, Arity} <- Module:module_info(nifs)],
    ["natives ", functions(erlang:system_info(snifs)), " ", functions(Nifs)].

functions(All) -> lists:join($,, [io_lib:format("~s:~s/~b", [M, F, A]) || {M, F, A} <- All]).

stats() ->
    {Collections, Words, _} = statistics(garbage_collection),
    {Switches, _} = statistics(context_switches),
    {Reductions, _} = statistics(reductions),
    Pairs = [
        {otp, erlang:system_info(otp_release)},
        {collections, Collections},
        {words_reclaimed, Words},
        {context_switches, Switches},
        {reductions, Reductions},
        {processes, erlang:system_info(process_count)},
        {ports, erlang:system_info(port_count)},
        {atoms, erlang:system_info(atom_count)},
        {run_queue, statistics(run_queue)},
        {memory, erlang:memory(total)},
        {schedulers, erlang:system_info(schedulers)}
    ],
    ["stats" | [io_lib:format(" ~s=~s", [Key, text(Value)]) || {Key, Value} <- Pairs]].

text(Value) when is_integer(Value) -> integer_to_list(Value);
text(Value) -> Value.
