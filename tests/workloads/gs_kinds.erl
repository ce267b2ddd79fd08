%% SPDX-License-Identifier: Apache-2.0
%% Planted servers of many kinds, and what they and their callers count and time themselves.
%%
%%   load MS     callers of all kinds, for so many milliseconds; answers when the last message is
%%               handled: "truth" and words MODULE:WHAT=NUMBER, times in microseconds
%%   long MS     60 callers of a server of which one call in ten takes seconds, as load
%%   keep        callers of all kinds, until the VM ends
%%   reset       forgets the truth until now
%%   rate N      N callers of the fast server that call without a pause, until the VM ends
%%   swarm M N   M modules, each with a server and N callers that call without a pause, until the
%%               VM ends
%%   swarmed S   what they did in S seconds: "truth", and the times of all of them as those of
%%               gs_swarm
%%   requests N  one process sends N requests at a time to the fast server, then takes all replies
%%   pass N      N calls that their server passes on: one half to the backend, which replies, the
%%               other to the server that lets another process reply
%%   inner N     a server makes N calls without a timeout, whose replies are plain messages
%%   unread N    a server gets N casts that it never takes, then ends
%%   abandon     a stopped server gets 15 calls: 5 callers give up, 4 end so, 6 wait on
%%   tags N      23 requests of each of N tags to one server, 23 without a tag, and 23 casts
%%   many N      N modules, each with a server that gets one call
%%   evil        one more, whose name is meant to break terminals and documents
%%   remote NODE calls the fast server of another node 23 times
-module(gs_kinds).
-export([start/0]).
-export([main/0, client/3, init/1, handle_call/3, handle_cast/2]).

-define(SERVERS, [gs_backend, gs_chain, gs_state, gs_defer, gs_late, gs_crash, gs_cast, gs_info,
    gs_fast, gs_mixed, gs_pass, gs_long]).

%% For erl -s gs_kinds.
start() -> spawn(?MODULE, main, []).

main() ->
    ok = logger:set_primary_config(level, none),
    gs_times:new(),
    [{ok, _} = Module:start() || Module <- ?SERVERS, Module =/= gs_pass],
    control:serve(fun(_) -> ok end, fun command/2).

command(_Control, ["load", Text]) ->
    gs_times:new(),
    Until = erlang:monotonic_time(millisecond) + list_to_integer(Text),
    _ = (catch erlang:resume_process(whereis(gs_late))),
    wait(clients(Until)),
    %% It has far more to do than it can: here it stops.
    true = erlang:suspend_process(whereis(gs_late)),
    ok = gen_server:call(gs_cast, sync, infinity),
    ok = gen_server:call(gs_info, sync, infinity),
    ["truth", gs_times:text(?SERVERS)];
command(_Control, ["long", Text]) ->
    gs_times:new(),
    Until = erlang:monotonic_time(millisecond) + list_to_integer(Text),
    wait([spawn_monitor(?MODULE, client, [gs_long, 2, Until]) || _ <- lists:seq(1, 60)]),
    ["truth", gs_times:text([gs_long])];
command(_Control, ["keep"]) ->
    gs_times:new(),
    clients(infinity),
    "done keep";
command(_Control, ["reset"]) ->
    gs_times:new(),
    "done reset";
command(_Control, ["truth"]) ->
    ["truth", gs_times:text(?SERVERS)];
command(_Control, ["rate", N]) ->
    gs_times:new(),
    [spawn(fun hammer/0) || _ <- lists:seq(1, list_to_integer(N))],
    "done rate";
command(_Control, ["swarm", Modules, Callers]) ->
    gs_times:new(),
    ok = gs_swarm:start(list_to_integer(Modules), list_to_integer(Callers)),
    "done swarm";
command(_Control, ["swarmed", Seconds]) ->
    gs_times:new(),
    gs_swarm:reset(),
    timer:sleep(1000 * list_to_integer(Seconds)),
    ["truth", gs_swarm:text(), gs_times:text([gs_swarm])];
command(_Control, ["requests", N]) ->
    gs_times:new(),
    wait([spawn_monitor(fun() -> requests(list_to_integer(N)) end)]),
    ["truth", gs_times:text(?SERVERS)];
command(_Control, ["pass", N]) ->
    gs_times:new(),
    {ok, _} = gs_pass:start(),
    wait([spawn_monitor(fun() ->
        [call(gs_pass, fun() -> gen_server:call(gs_pass, {pass, Number}) end)
            || Number <- lists:seq(1, list_to_integer(N))]
    end)]),
    ok = gen_server:stop(gs_pass),
    ["truth", gs_times:text(?SERVERS)];
command(_Control, ["inner", N]) ->
    {ok, Pid} = gs_pass:start(),
    ok = gen_server:call(Pid, {inner, list_to_integer(N)}, infinity),
    ok = gen_server:stop(gs_pass),
    "done inner";
command(_Control, ["unread", N]) ->
    {ok, Pid} = gs_pass:start(),
    true = erlang:suspend_process(Pid),
    [gen_server:cast(Pid, {unread, Number}) || Number <- lists:seq(1, list_to_integer(N))],
    Ref = monitor(process, Pid),
    exit(Pid, kill),
    receive {'DOWN', Ref, _, _, _} -> "done unread" end;
command(_Control, ["abandon"]) ->
    {ok, Pid} = gs_pass:start(),
    true = erlang:suspend_process(Pid),
    Self = self(),
    Call = fun(Timeout) -> gen_server:call(Pid, {nothing, 0}, Timeout) end,
    wait([spawn_monitor(fun() -> Call(10) end) || _ <- lists:seq(1, 4)]),
    Lives = [spawn(fun() ->
        catch Call(10),
        Self ! {given_up, self()},
        timer:sleep(infinity)
    end) || _ <- lists:seq(1, 5)],
    [receive {given_up, Live} -> ok end || Live <- Lives],
    Waits = [fun() -> Call(600000) end, fun() -> Call(infinity) end, fun() ->
        _ = gen_server:send_request(Pid, {nothing, 0}),
        timer:sleep(infinity)
    end],
    [spawn(Wait) || Wait <- Waits ++ Waits],
    queued(Pid, 15),
    "done abandon";
command(_Control, ["tags", N]) ->
    {ok, Pid} = gen_server:start(gs_tags, [], []),
    [[ok = gen_server:call(Pid, Request) || _ <- lists:seq(1, 23)]
        || Request <- tags(list_to_integer(N)) ++ [[untagged]]],
    [ok = gen_server:cast(Pid, {tag_1, Number}) || Number <- lists:seq(1, 23)],
    ok = gen_server:call(Pid, tag_1),
    ok = gen_server:stop(Pid),
    "done tags";
command(_Control, ["many", N]) ->
    [one_module("gs_many_" ++ integer_to_list(Number)) || Number <- lists:seq(1, list_to_integer(N))],
    "done many";
command(_Control, ["evil"]) ->
    one_module("Elixir.Evil\e[2J\n\",{%"),
    "done evil";
command(_Control, ["remote", Node]) ->
    [{reply, ok} = {reply, gen_server:call({gs_fast, list_to_atom(Node)}, {nothing, gs_times:now()})}
        || _ <- lists:seq(1, 23)],
    "done remote".

queued(Pid, Count) ->
    case process_info(Pid, message_queue_len) of
        {_, Count} -> ok;
        _ ->
            timer:sleep(10),
            queued(Pid, Count)
    end.

clients(Until) ->
    [spawn_monitor(?MODULE, client, [Kind, Pause, Until]) || {Kind, Pause} <- [
        {gs_chain, 11}, {gs_chain, 23}, {gs_state, 13}, {gs_state, 31}, {gs_defer, 7},
        {gs_defer, 17}, {gs_late, 0}, {gs_late, 0}, {gs_crash, 5}, {gs_crash, 9}, {gs_cast, 4},
        {gs_info, 5}, {gs_fast, 2}, {gs_mixed, 9}, {gs_mixed, 19}]].

wait(Clients) ->
    [receive {'DOWN', Ref, _, _, _} -> ok end || {_, Ref} <- Clients].

client(Kind, Pause, Until) ->
    case Until =/= infinity andalso erlang:monotonic_time(millisecond) >= Until of
        true ->
            ok;
        false ->
            timer:sleep(rand:uniform(2 * Pause + 1) - 1),
            ask(Kind),
            client(Kind, Pause, Until)
    end.

ask(gs_chain) -> call(gs_chain, fun() -> gen_server:call(gs_chain, ask, infinity) end);
ask(gs_state) -> call(gs_state, fun() -> gen_statem:call(gs_state, work) end);
ask(gs_defer) -> call(gs_defer, fun() -> gen_server:call(gs_defer, {later, gs_times:now()}) end);
ask(gs_long) -> call(gs_long, fun() -> gen_server:call(gs_long, {later, gs_times:now()}) end);
ask(gs_late) -> call(gs_late, fun() -> gen_server:call(gs_late, {sleep, gs_times:now()}, 10) end);
ask(gs_crash) ->
    Number = rand:uniform(20),
    call(gs_crash, fun() -> gen_server:call(gs_crash, {perhaps, gs_times:now(), Number}) end);
ask(gs_cast) ->
    gs_times:count(gs_cast, casts),
    gen_server:cast(gs_cast, {work, gs_times:now()});
ask(gs_info) ->
    gs_times:count(gs_info, infos),
    case rand:uniform(2) of
        1 -> gs_info ! {work, gs_times:now()};
        2 ->
            Timer = erlang:send_after(1, gs_info, {work, unknown}),
            timer:sleep(2),
            false = erlang:read_timer(Timer)
    end;
ask(Module) -> call(Module, fun() -> gen_server:call(Module, {work, gs_times:now()}) end).

%% One call, how long it took, and how it ended.
call(Module, Call) ->
    T0 = gs_times:now(),
    try Call() of
        _ ->
            gs_times:count(Module, answered),
            gs_times:time(Module, call, gs_times:now() - T0)
    catch
        exit:{timeout, _} -> gs_times:count(Module, timeout);
        exit:{noproc, _} -> gs_times:count(Module, noproc);
        exit:_ -> gs_times:count(Module, down)
    end.

hammer() ->
    call(gs_fast, fun() -> gen_server:call(gs_fast, {nothing, gs_times:now()}) end),
    hammer().

requests(N) ->
    Ids = [gen_server:send_request(gs_fast, {work, gs_times:now()}) || _ <- lists:seq(1, N)],
    [begin
        {reply, ok} = gen_server:wait_response(Id, infinity),
        gs_times:count(gs_fast, answered)
    end || Id <- Ids].

%% Every other one is a tuple.
tags(N) ->
    Atoms = [list_to_atom("tag_" ++ integer_to_list(Number)) || Number <- lists:seq(1, N)],
    [case Number rem 2 of 0 -> Atom; 1 -> {Atom, Number} end
        || {Number, Atom} <- lists:zip(lists:seq(1, N), Atoms)].

%% A server whose callback module is a copy of this one under another name.
one_module(Text) ->
    Mfa = {list_to_atom(Text), init, 1},
    Parent = self(),
    Pid = proc_lib:spawn(fun() ->
        put('$initial_call', Mfa),
        Parent ! {self(), ready},
        gen_server:enter_loop(?MODULE, [], none)
    end),
    receive {Pid, ready} -> ok end,
    ok = gen_server:call(Pid, ping).

init([]) -> {ok, none}.

handle_call(ping, _From, State) -> {reply, ok, State}.

handle_cast(_, State) -> {noreply, State}.
