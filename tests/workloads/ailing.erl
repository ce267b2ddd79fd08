%% SPDX-License-Identifier: Apache-2.0
%% Ails in one of many ways at a time.
%%
%%   plant CASE    ails from now on: "done CASE"
%%   cure          ends what was planted: "done cure"; the pipe of path/0 is to be open for writing
%%   tell EXPR     what an Erlang expression is in this VM, as Erlang prints it
%%   halt          "done", and then erlang:halt(3)
-module(ailing).
-behaviour(supervisor).
-behaviour(application).
-export([start/0, main/0, start/2, stop/1, init/1]).
-export([hold/0, cache/0, collector/1, spinner/0, suspender/1, writer/1, loader/0]).
-export([dies/0, crash/0, caller/0, slow/0, held/0, dirty/0, queue_writer/0, stays/0]).
-export([heap/0, crumbs/0, ports/0, table/0, timers/0]).

-define(MAILBOX, 12345).
-define(ALIKE, 12345).
-define(BINARIES, 200).
-define(OUTSIDE, 300 bsl 20).
-define(OBJECTS, 4567).
-define(TIMERS, 123456).

start() -> spawn_opt(?MODULE, main, [], [{priority, max}]).

main() ->
    register(ailing_main, self()),
    process_flag(trap_exit, true),
    control:serve(fun(_) -> put(planted, []) end, fun command/2).

command(_, ["plant", Case]) ->
    put(planted, plant(list_to_atom(Case)) ++ get(planted)),
    ["done ", Case];
command(_, ["cure"]) ->
    [end_of(Pid) || Pid <- get(planted)],
    put(planted, []),
    "done cure";
command(_, ["tell" | Words]) ->
    {ok, Tokens, _} = erl_scan:string(lists:flatten(lists:join($ , Words)) ++ "."),
    {ok, Expression} = erl_parse:parse_exprs(Tokens),
    {value, Value, _} = erl_eval:exprs(Expression, []),
    io_lib:format("~0p", [Value]);
command(Control, ["halt"]) ->
    control:say(Control, "done"),
    erlang:halt(3).

end_of(keep) -> names_nif:keep(0);
end_of(Pid) ->
    Monitor = erlang:monitor(process, Pid),
    unlink(Pid),
    exit(Pid, kill),
    receive
        {'DOWN', Monitor, _, _, _} -> ok
    end.

plant(mailbox) ->
    Pid = named(slow_writer, fun hold/0),
    [Pid ! {cast, I, <<"0123456789abcdef">>} || I <- lists:seq(1, ?MAILBOX)],
    [Pid];
plant(many_mailboxes) ->
    Pids = [spawn(?MODULE, hold, []) || _ <- lists:seq(1, 1000)],
    [Pid ! I || Pid <- Pids, I <- lists:seq(1, 1003)],
    Pids;
plant(logger) ->
    Pid = named(logger_std_h_planted, fun hold/0),
    [Pid ! {log, I} || I <- lists:seq(1, 777)],
    [Pid];
plant(binaries) ->
    [ready(session_cache, fun cache/0)];
plant(alike) ->
    [spawn(?MODULE, hold, []) || _ <- lists:seq(1, ?ALIKE)];
plant(deadlock) ->
    Names = [orders, stock, billing],
    Pids = [element(2, {ok, _} = gs_circle:start(Name)) || Name <- Names],
    [gen_server:cast(A, {ask, B}) || {A, B} <- [{orders, stock}, {stock, billing}, {billing, orders}]],
    [until(fun() -> process_info(Pid, current_function) =:= {current_function, {gen, do_call, 4}} end)
     || Pid <- Pids],
    Pids;
plant(crowd) ->
    Pid = named(checkout, fun slow/0),
    [Pid | [spawn(?MODULE, caller, []) || _ <- lists:seq(1, 23)]];
plant(suspended) ->
    Pid = named(debugged, fun hold/0),
    By = named(debugger_of_it, fun() -> suspender(Pid) end),
    until(fun() -> process_info(Pid, status) =:= {status, suspended} end),
    [Pid, By];
plant(port) ->
    Pid = named(printer, fun() -> writer("sh -c 'while kill -0 $PPID; do sleep 1; done'") end),
    until(fun() -> process_info(Pid, status) =:= {status, suspended} end),
    [Pid];
plant(code) ->
    [spawn(?MODULE, loader, []) || _ <- lists:seq(1, 40)];
plant(starved) ->
    _ = [spawn(?MODULE, spinner, []) || _ <- lists:seq(1, 4)],
    [spawn_opt(?MODULE, spinner, [], [{priority, high}])
     || _ <- lists:seq(1, erlang:system_info(schedulers_online))];
plant(gc) ->
    [named(heavy_collector, fun() -> collector(lists:seq(1, 1000000)) end)];
plant(crash) ->
    {ok, Pid} = supervisor:start_link({local, worker_sup}, ?MODULE, crash),
    [Pid];
plant(wedged) ->
    _ = names_nif:load(),
    [named(hasher, fun held/0)];
plant(all_wedged) ->
    _ = names_nif:load(),
    Online = lists:seq(1, erlang:system_info(schedulers_online)),
    Later = fun() -> receive after 100 -> held() end end,
    [spawn_opt(?MODULE, spinner, [], [{scheduler, 1}]) || _ <- lists:seq(1, 500)]
        ++ [spawn_opt(Later, [{priority, high}, {scheduler, I}]) || I <- Online];
plant(dirty) ->
    _ = names_nif:load(),
    [spawn(?MODULE, dirty, []) || _ <- lists:seq(0, erlang:system_info(dirty_cpu_schedulers))];
plant(dirty_io) ->
    [spawn(fun open/0) || _ <- lists:seq(0, erlang:system_info(dirty_io_schedulers))];
plant(spins) ->
    _ = names_nif:load(),
    [named(hasher, fun() -> names_nif:spin(5000) end)];
plant(selective) ->
    Client = named(rpc_client, fun() -> hold_fast(0) end),
    [Client ! {cast, I, <<"0123456789abcdef">>} || I <- lists:seq(1, ?MAILBOX)],
    [Client, spawn(fun() -> answer(Client, 0) end)];
plant(behind) ->
    Pid = named(late_reader, fun late/0),
    [Pid ! {cast, I, <<"0123456789abcdef">>} || I <- lists:seq(1, ?MAILBOX)],
    [Pid];
plant(outside) ->
    _ = names_nif:load(),
    ok = names_nif:keep(?OUTSIDE),
    [keep];
plant(heap) ->
    [ready(holder, fun heap/0)];
plant(fragments) ->
    [ready(crumbler, fun crumbs/0)];
plant(ports) ->
    [ready(opener, fun ports/0)];
plant(table) ->
    [ready(session_mgr, fun table/0)];
plant(timers) ->
    [ready(scheduler_of_it, fun timers/0)];
plant(crowded) ->
    [spawn(?MODULE, spinner, []) || _ <- lists:seq(1, 200)];
plant(atoms) ->
    _ = [list_to_atom("ctl-" ++ integer_to_list(I) ++ "@localhost") || I <- lists:seq(1, left())],
    [];
plant(stopping) ->
    ok = application:load({application, shop, [{mod, {?MODULE, []}}, {applications, [kernel, stdlib]}]}),
    ok = application:start(shop),
    init:stop(),
    until(fun() ->
        {current_function, {M, F, _}} = process_info(whereis(shop_sup), current_function),
        {M, F} =:= {supervisor, shutdown}
    end),
    [].

left() -> erlang:system_info(atom_limit) * 96 div 100 - erlang:system_info(atom_count).

named(Name, Fun) ->
    Main = self(),
    Pid = spawn(fun() -> put(main, Main), Fun() end),
    true = register(Name, Pid),
    Pid.

%% The same, when it has what it is to hold.
ready(Name, Fun) ->
    Pid = named(Name, Fun),
    receive {Pid, ready} -> Pid end.

hold() -> receive stop -> ok end.

cache() ->
    Held = [binary:part(binary:copy(<<I>>, 1 bsl 20), 0, 1000) || I <- lists:seq(1, ?BINARIES)],
    has(Held).

heap() -> has(lists:seq(1, 8000000)).

%% One of 40 of 16,000 binaries stays, and with it the carriers of all.
crumbs() ->
    Made = [{I, binary:copy(<<I>>, 12000)} || I <- lists:seq(1, 16000)],
    Held = [Binary || {I, Binary} <- Made, I rem 40 =:= 0],
    erlang:garbage_collect(),
    has(Held).

ports() -> has([open_port({spawn_driver, "ram_file_drv"}, []) || _ <- lists:seq(1, 800)]).

table() ->
    Table = ets:new(last_item, [named_table, public]),
    true = ets:insert(Table, [{I, lists:seq(1, 1000)} || I <- lists:seq(1, ?OBJECTS)]),
    erlang:garbage_collect(),
    has(Table).

timers() -> has([erlang:send_after(86400000, self(), never) || _ <- lists:seq(1, ?TIMERS)]).

has(Held) ->
    get(main) ! {self(), ready},
    receive stop -> Held end.

collector(Heap) ->
    erlang:garbage_collect(),
    collector(Heap).

spinner() -> spinner().

suspender(Pid) ->
    erlang:suspend_process(Pid),
    hold().

writer(Program) -> write(open_port({spawn, Program}, [binary])).

write(Port) ->
    erlang:port_command(Port, binary:copy(<<0>>, 1000000)),
    write(Port).

loader() ->
    _ = code:ensure_loaded(a_module_that_is_not_there),
    loader().

slow() -> receive {'$gen_call', _, _} -> receive never -> ok end end.
caller() -> gen_server:call(checkout, pay, infinity).

%% Each answer is behind all messages that nobody takes.
hold_fast(N) -> receive {answer, N, From} -> From ! {taken, N}, hold_fast(N + 1) end.

answer(Client, N) ->
    Client ! {answer, N, self()},
    receive {taken, N} -> answer(Client, N + 1) end.

late() ->
    receive Message -> self() ! Message, lists:seq(1, 1000), late() end.

open() -> file:open(path(), [read, raw]).
held() -> names_nif:held(path()).
dirty() -> names_nif:dirty_held(path()).
path() -> os:getenv("NAMES_NIF") ++ ".pipe".

dies() -> {ok, spawn_link(?MODULE, crash, [])}.
crash() -> receive after 5 -> exit(crashed) end.

init(crash) ->
    {ok, {#{intensity => 1000000, period => 10}, [#{id => worker, start => {?MODULE, dies, []}}]}};
init(shop) ->
    Writer = #{id => queue_writer, start => {?MODULE, queue_writer, []}, shutdown => infinity},
    {ok, {#{}, [Writer]}}.

start(_, _) -> supervisor:start_link({local, shop_sup}, ?MODULE, shop).
stop(_) -> ok.

queue_writer() ->
    Pid = spawn_link(?MODULE, stays, []),
    true = register(queue_writer, Pid),
    {ok, Pid}.

stays() ->
    process_flag(trap_exit, true),
    hold().

until(Holds) ->
    case Holds() of
        true -> ok;
        false -> receive after 1 -> until(Holds) end
    end.
