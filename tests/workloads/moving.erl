%% SPDX-License-Identifier: Apache-2.0
%% Processes that change while they are read, and what the VM knows of others that do not.
%%
%% The moving ones run in a few functions of their own module alone, so that any other frame is of
%% another process: moving_ping_N (every 10 ms), moving_busy (its heap is replaced every 10 ms),
%% moving_server (a gen_server that is called 500 times a second), moving_slow (one with 40 callers,
%% of which it takes one every 20 ms, and whose calls monitor it).
%%
%%   holds       makes moving_holder: monitors, aliases, suspended processes, subscriptions to nodes
%%   counts NAME what process_info says: "counts MONITORS WATCHERS LINKS SUSPENDING"
%%   related NAME  who is behind those counts, as pids and ports; kinds of them apart by a bar
%%   fill NAME N N messages more for NAME, "done fill N"
%%   hog N       N processes that never wait, "done hog"
%%   memory NAME its memory, and the length of its mailbox
%%   collect     makes moving_heavy, which collects a long list every 20 ms, and moving_light, which
%%               collects a short one every 2 ms
%%   inside      makes moving_inside, which has slept and is in a native function for ever, on the
%%               second scheduler
-module(moving).
-behaviour(gen_server).
-export([start/0, main/0, init/1, handle_call/3, handle_cast/2]).

start() -> spawn(?MODULE, main, []).

main() ->
    [spawn(fun() -> register(name("moving_ping_", I), self()), pinger(partner()) end)
     || I <- lists:seq(1, 4)],
    spawn(fun() -> register(moving_busy, self()), busy() end),
    {ok, _} = gen_server:start({local, moving_server}, ?MODULE, none, []),
    [spawn(fun caller/0) || _ <- lists:seq(1, 4)],
    {ok, _} = gen_server:start({local, moving_slow}, ?MODULE, none, []),
    [spawn(fun waiter/0) || _ <- lists:seq(1, 40)],
    spawn(fun() -> register(moving_deaf, self()), deaf() end),
    %% Others whose stacks lie where those of the first were.
    [spawn(fun() -> churn(I) end) || I <- lists:seq(1, 4)],
    control:serve(fun(_) -> ok end, fun command/2).

name(Prefix, I) -> list_to_atom(Prefix ++ integer_to_list(I)).

command(_, ["holds"]) ->
    Self = self(),
    Quiet = [spawn(fun deaf/0) || _ <- lists:seq(1, 3)],
    spawn(fun() ->
        register(moving_holder, self()),
        net_kernel:monitor_nodes(true),
        [erlang:monitor(process, P) || P <- Quiet],
        erlang:monitor(time_offset, clock_service),
        erlang:monitor(process, moving_deaf),
        link(hd(Quiet)),
        put(aliases, [erlang:alias() || _ <- lists:seq(1, 5)]),
        [erlang:suspend_process(P) || P <- tl(Quiet)],
        register(moving_suspended, lists:last(Quiet)),
        Self ! holds,
        deaf()
    end),
    receive holds -> "done holds" end;
command(_, ["counts", Name]) ->
    Found = erlang:process_info(whereis(list_to_atom(Name)), [monitors, monitored_by, links, suspending]),
    ["counts", [io_lib:format(" ~b", [length(List)]) || {_, List} <- Found]];
command(_, ["related", Name]) ->
    Found = erlang:process_info(whereis(list_to_atom(Name)), [monitors, monitored_by, links, suspending]),
    Lists = [[io_lib:format(" ~w", [who(One)]) || One <- List, who(One) =/= none] || {_, List} <- Found],
    ["related ", lists:join("|", Lists)];
command(_, ["fill", Name, N]) ->
    To = whereis(list_to_atom(Name)),
    fill(To, list_to_integer(N)),
    %% The answer to this comes after the messages have been counted.
    {message_queue_len, _} = erlang:process_info(To, message_queue_len),
    ["done fill ", N];
command(_, ["hog", N]) ->
    [spawn(fun hog/0) || _ <- lists:seq(1, list_to_integer(N))],
    "done hog";
command(_, ["inside"]) ->
    ok = names_nif:load(),
    %% The answer comes first: a process behind a native function may wait for ever.
    spawn_opt(fun() -> register(moving_inside, self()), nap(300), outer() end, [{scheduler, 2}]),
    "done inside";
command(_, ["collect"]) ->
    Self = self(),
    spawn(fun() -> register(moving_heavy, self()), Self ! collect, heavy(lists:seq(1, 200000)) end),
    spawn(fun() -> register(moving_light, self()), Self ! collect, light() end),
    [receive collect -> ok end || _ <- [1, 2]],
    "done collect";
command(_, ["memory", Name]) ->
    Found = erlang:process_info(whereis(list_to_atom(Name)), [memory, message_queue_len]),
    ["memory", [io_lib:format(" ~b", [N]) || {_, N} <- Found]].

fill(_, 0) -> ok;
fill(To, N) -> To ! {cast, N, <<"0123456789abcdef">>}, fill(To, N - 1).

outer() -> R = inner(), {outer, R}.
inner() -> R = names_nif:wedge(), {inner, R}.

hog() -> hog().

deaf() -> receive never -> ok end.

partner() -> spawn(fun ponger/0).

ponger() -> receive {ping, From} -> From ! pong, ponger() end.

pinger(Partner) ->
    Partner ! {ping, self()},
    receive pong -> ok end,
    nap(10),
    pinger(Partner).

busy() ->
    L = lists:seq(1, 3000),
    true = fold(L) > 0,
    nap(10),
    busy().

heavy(L) -> erlang:garbage_collect(), nap(20), heavy(L).

light() -> _ = lists:seq(1, 400), erlang:garbage_collect(self(), [{type, minor}]), nap(2), light().

fold(L) -> lists:foldl(fun(X, Sum) -> X + Sum end, 0, L).

%% In no tail position, as the frames of a server are.
nap(Milliseconds) ->
    receive after Milliseconds -> ok end.

churn(I) ->
    {_, Monitor} = spawn_monitor(fun() -> nested(I * 7) end),
    receive {'DOWN', Monitor, _, _, _} -> ok end,
    receive after 1 -> ok end,
    churn(I).

nested(0) -> receive after 1 -> ok end, erlang:garbage_collect(), 0;
nested(N) -> 1 + nested(N - 1).

caller() ->
    answer = gen_server:call(moving_server, request),
    receive after 5 -> ok end,
    caller().

waiter() ->
    answer = gen_server:call(moving_slow, slow, infinity),
    waiter().

init(none) -> {ok, none}.
handle_call(request, _From, State) -> {reply, answer, State};
handle_call(slow, _From, State) -> nap(20), {reply, answer, State}.
handle_cast(_, State) -> {noreply, State}.

%% The process or port of one of those.
who({process, {Name, _}}) -> whereis(Name);
who({time_offset, _}) -> none;
who({_, Who}) -> Who;
who({Who, _, _}) -> Who;
who(Who) -> Who.
