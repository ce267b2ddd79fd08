%% SPDX-License-Identifier: Apache-2.0
%% A gen_server whose messages are counted by who sends them, functions that call each other, and a load.
-module(counted).
-behaviour(gen_server).
-export([start/0, main/0, init/1, handle_call/3, handle_cast/2, handle_info/2, terminate/2]).
-export([deep/1, hand_over/1, taken_over/1, leaf/1]).

%% For erl -s counted.
start() -> spawn(?MODULE, main, []).

main() ->
    Port = open_port({fd, 0, 0}, [in, eof, {line, 80}]),
    ok = logger:set_primary_config(level, none),
    io:format("ready~n"),
    loop(Port).

loop(Port) ->
    receive
        {Port, {data, {_, "load"}}} -> load(), loop(Port);
        {Port, {data, {_, "rest"}}} -> rest(), loop(Port);
        {Port, {data, {_, "spin"}}} -> spin(500000), io:format("spun~n"), loop(Port);
        {Port, {data, {_, "pace " ++ N}}} -> pace(list_to_integer(N)), loop(Port);
        {Port, {data, {_, "paced"}}} -> io:format("paced ~b~n", [paced()]), loop(Port);
        {Port, {data, {_, "remote " ++ To}}} -> remote(string:split(To, " ")), loop(Port);
        {Port, {data, {_, "served"}}} -> io:format("served ~b~n", [served()]), loop(Port);
        {Port, {data, _}} -> plant(), io:format("done~n"), loop(Port);
        {Port, eof} -> ok
    end.

%% Call N of 23 kinds is made 3 * N times; then casts, other messages, failures and an end.
plant() ->
    {ok, Server} = gen_server:start(?MODULE, [], []),
    [ok = gen_server:call(Server, {kind(N), x}) || N <- lists:seq(1, 23), _ <- lists:seq(1, 3 * N)],
    [gen_server:cast(Server, {late, N}) || N <- lists:seq(1, 1777)],
    [Server ! N || N <- lists:seq(1, 23)],
    ok = gen_server:call(Server, {through, self()}),
    {'EXIT', _} = (catch gen_server:call(Server, crash)),
    [gen_server:stop(element(2, gen_server:start(?MODULE, [], []))) || _ <- lists:seq(1, 23)],
    [{'EXIT', _} = (catch gen_server:call(element(2, gen_server:start(?MODULE, [], [])), crash))
     || _ <- lists:seq(1, 23)],
    {ok, Waiting} = gen_server:start(?MODULE, [], []),
    gen_server:cast(Waiting, {wait, self()}),
    receive waits -> ok end,
    functions(),
    [failed = guarded(N) || N <- lists:seq(1, 23)],
    ok.

functions() ->
    [40 = deep(40) || _ <- lists:seq(1, 23)],
    [ok = hand_over(N) || N <- lists:seq(1, 230)],
    [ok = leaf(N) || N <- lists:seq(1, 2300)],
    ok.

guarded(N) ->
    try handle_info(crash, N)
    catch error:crash -> failed
    end.

deep(0) -> 0;
deep(N) -> 1 + deep(N - 1).

hand_over(N) -> taken_over(N).

taken_over(_) -> ok.

leaf(_) -> ok.

kind(N) -> list_to_atom("kind_" ++ integer_to_list(N)).

%% 500 calls a second, also where the host is busy; what was served is counted by the server itself.
load() ->
    {ok, Server} = gen_server:start({local, counted}, ?MODULE, [], []),
    Load = spawn_link(fun() -> calls(Server, erlang:monotonic_time(millisecond)) end),
    register(load, Load),
    io:format("loaded~n").

%% No call is under way when it is said.
rest() ->
    Load = whereis(load),
    unlink(Load),
    Ended = monitor(process, Load),
    exit(Load, kill),
    receive {'DOWN', Ended, _, _, _} -> ok end,
    gen_server:stop(counted),
    io:format("resting~n").

calls(Server, Due) ->
    ok = gen_server:call(Server, {work, x}),
    receive after max(0, Due - erlang:monotonic_time(millisecond)) -> ok end,
    calls(Server, Due + 2).

served() -> gen_server:call(counted, served).

%% Each call has two markers.
spin(0) -> ok;
spin(N) ->
    _ = terminate(N, N),
    spin(N - 1).

%% N calls in each millisecond, also where the host is busy, with some work between them.
pace(N) ->
    Count = counters:new(1, []),
    persistent_term:put(paced, Count),
    spawn_link(fun() -> pace(Count, N, erlang:monotonic_time(millisecond)) end),
    io:format("pacing~n").

pace(Count, N, Due) ->
    [terminate(I, lists:sum(lists:seq(1, 400))) || I <- lists:seq(1, N)],
    counters:add(Count, 1, N),
    receive after max(0, Due - erlang:monotonic_time(millisecond)) -> ok end,
    pace(Count, N, Due + 1).

%% N calls of a server on another node.
remote([Node, N]) ->
    {ok, Server} = rpc:call(list_to_atom(Node), gen_server, start, [?MODULE, [], []]),
    [ok = gen_server:call(Server, {work, x}) || _ <- lists:seq(1, list_to_integer(N))],
    ok = gen_server:stop(Server),
    io:format("remoted ~s~n", [N]).

paced() -> counters:get(persistent_term:get(paced), 1).

init(State) ->
    process_flag(trap_exit, true),
    put(served, 0),
    {ok, State}.

handle_call(crash, _, State) -> {reply, 1 / length(State), State};
handle_call(served, _, State) -> {reply, get(served), State};
handle_call({through, _}, From, State) ->
    gen_server:reply(From, ok),
    {noreply, State};
handle_call(_, _, State) ->
    put(served, get(served) + 1),
    {reply, ok, State}.

handle_cast({wait, Pid}, _) ->
    Pid ! waits,
    receive never -> ok end;
handle_cast(_, State) -> noreply(State).

handle_info(crash, _) -> error(crash);
handle_info(_, State) -> {noreply, State}.

terminate(_, _) -> ok.

noreply(State) -> {noreply, State}.
