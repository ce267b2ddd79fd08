%% SPDX-License-Identifier: Apache-2.0
%% Loads that count what they do while they do it, in memory that an observer can find, so that its rates
%% can be compared with the truth at any moment. Commands on stdin, answers on stdout, one line each.
%%
%%   run LOAD N   starts N workers (answers "running"):
%%                steady: pairs that send each other messages without a pause
%%                bursts: the same in bursts of all lengths, with work and sleep of all lengths between
%%                phases: 0.3 s of messages, then 0.3 s of work without any, all pairs at once
%%                spawn:  spawners; gc: collectors
%%   pace N TRIPS WORK PAUSE
%%                starts N pairs that do so many round trips, then so much work, then rest for so many
%%                milliseconds, again and again (answers "running")
%%   rest         ends the workers (answers "resting")
-module(bursts).
-export([start/0, main/0, pair/3, echo/0, spawner/2, collector/2]).

start() -> spawn(?MODULE, main, []).

main() ->
    %% An observer finds the third by the two before it, so that it can read it at any moment.
    Exact = atomics:new(3, [{signed, false}]),
    atomics:put(Exact, 1, 16#C0047E45EBBF5C09),
    atomics:put(Exact, 2, 16#5C09EEBBF0000000 bor list_to_integer(os:getpid())),
    put(workers, []),
    control:serve(fun(_Control) -> ok end, fun(_Control, Words) -> command(Exact, Words) end).

command(Exact, ["run", Load, N]) ->
    Now = erlang:monotonic_time(millisecond),
    put(workers, [spawn(fun() -> work(list_to_atom(Load), Exact, Now) end)
                  || _ <- lists:seq(1, list_to_integer(N))]),
    "running";
command(Exact, ["pace", N | Pace]) ->
    [Trips, Work, Pause] = [list_to_integer(Number) || Number <- Pace],
    put(workers, [spawn(fun() -> paced(Exact, spawn_link(?MODULE, echo, []), Trips, Work, Pause) end)
                  || _ <- lists:seq(1, list_to_integer(N))]),
    "running";
command(_Exact, ["rest"]) ->
    [exit(Worker, kill) || Worker <- get(workers)],
    "resting".

work(spawn, Exact, _) -> spawner(Exact, rand:seed_s(exsss));
work(gc, Exact, _) ->
    %% On a heap so large that it never collects on its own.
    spawn_opt(?MODULE, collector, [Exact, rand:seed_s(exsss)], [link, {min_heap_size, 100000}]),
    receive never -> ok end;
work(Load, Exact, Start) -> pair(Load, Exact, {Start, spawn_link(?MODULE, echo, [])}).

echo() -> receive {ping, From} -> From ! pong, echo() end.

pair(steady, Exact, {_, Echo} = State) ->
    volley(100, Exact, Echo),
    pair(steady, Exact, State);
pair(phases, Exact, {Start, Echo} = State) ->
    case (erlang:monotonic_time(millisecond) - Start) div 300 rem 2 of
        0 -> volley(10, Exact, Echo);
        1 -> compute(2000)
    end,
    pair(phases, Exact, State);
pair(bursts, Exact, {_, Echo} = State) ->
    volley(sized(300), Exact, Echo),
    compute(sized(20000)),
    case rand:uniform(10) of
        1 -> receive after rand:uniform(5) -> ok end;
        _ -> ok
    end,
    pair(bursts, Exact, State).

paced(Exact, Echo, Trips, Work, Pause) ->
    volley(Trips, Exact, Echo),
    compute(Work),
    rest(Pause),
    paced(Exact, Echo, Trips, Work, Pause).

rest(0) -> ok;
rest(Pause) -> receive after Pause -> ok end.

%% Many that are small, few that are large, up to Most.
sized(Most) -> trunc(math:pow(Most, rand:uniform())).

volley(0, _Exact, _Echo) -> ok;
volley(N, Exact, Echo) ->
    Echo ! {ping, self()},
    atomics:add(Exact, 3, 2),
    receive pong -> volley(N - 1, Exact, Echo) end.

compute(0) -> ok;
compute(N) -> compute(N - 1).

%% A burst of processes, then some work; yields, so that they do not pile up.
spawner(Exact, Seed) ->
    {Some, Next} = rand:uniform_s(100, Seed),
    [spawn(fun() -> ok end) || _ <- lists:seq(1, Some)],
    atomics:add(Exact, 3, Some),
    erlang:yield(),
    compute(Some * 10),
    spawner(Exact, Next).

collector(Exact, Seed) ->
    {Some, Next} = rand:uniform_s(100, Seed),
    _ = lists:seq(1, Some),
    erlang:garbage_collect(),
    atomics:add(Exact, 3, 1),
    compute(Some * 10),
    collector(Exact, Next).
