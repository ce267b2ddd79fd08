%% SPDX-License-Identifier: Apache-2.0
%% Holds what tests/kernel/test_held.py counts, and says what the node itself knows of it.
%%
%%   tables      answers with a line for each ETS table, then "end"
%%   grow N      N objects more in held_set
%%   many N      N tables more
%%   timers N    N timers more
%%   swell N     the process culprit holds N binaries of a million bytes more
%%   letters N   addressee has N messages of 1.6 MB off its heap, 40 processes have 60 small ones
%%   parcels N   recipient has N messages off its heap, each with a binary of a million bytes
%%   mailboxes N N processes more with 25 messages each
%%   atoms N     the atoms planted_1 to planted_N
%%   ports       answers with a line for each port, then "end"
%%   processes N N processes more that wait in other/0
%%   sockets N   N ports more, of the driver of UDP, without a descriptor
%%   stacks      answers with a line for each other process that waits: its stack, then "end"
%%   memory      answers with a line for each kind of memory, then "end"
%%   binaries    answers with a line for each process with binaries, then "end"
%%   churn       two processes make and delete tables from now on
-module(holding).
-export([start/0, main/0, keeper/1, printer/1, hoarder/1, deep/2, inner/0, other/0]).

%% For erl -s holding.
start() -> spawn(?MODULE, main, []).

main() ->
    Keeper = spawn(?MODULE, keeper, [self()]),
    receive ready -> ok end,
    control:serve(fun(_) -> ok end, fun(Control, Words) -> command(Control, Keeper, Words) end).

command(Control, _, ["tables"]) ->
    [control:say(Control, tell(T)) || T <- ets:all()],
    "end";
command(Control, _, ["ports"]) ->
    [control:say(Control, port(P)) || P <- erlang:ports()],
    "end";
command(Control, _, ["stacks"]) ->
    erlang:system_flag(backtrace_depth, 50),
    [control:say(Control, stack(P)) || P <- processes(), P =/= self(), P =/= whereis(printer)],
    "end";
command(Control, _, ["memory"]) ->
    erlang:garbage_collect(),
    #{count := Terms, memory := Bytes} = persistent_term:info(),
    Kinds = erlang:memory() ++ [{persistent_terms, Terms}, {persistent_bytes, Bytes}],
    [control:say(Control, io_lib:format("~w ~w", [Kind, Size])) || {Kind, Size} <- Kinds],
    "end";
command(Control, _, ["binaries"]) ->
    [control:say(Control, io_lib:format("~p ~w", [P, Bytes]))
     || P <- processes(), P =/= self(), (Bytes = vheap(P)) > 0],
    "end";
command(_, _, ["churn"]) ->
    Churn = fun(Again) -> ets:delete(ets:new(churning, [])), Again(Again) end,
    [spawn(fun() -> Churn(Churn) end) || _ <- [1, 2]],
    "done";
command(_, Keeper, [Word, Count]) ->
    Keeper ! {Word, self(), list_to_integer(Count)},
    receive done -> "done" end.

keeper(Parent) ->
    register(keeper, self()),
    Set = ets:new(held_set, [named_table, public]),
    fill(Set, 1, 2300),
    Bag = ets:new(held_bag, [bag, protected]),
    ets:insert(Bag, [{N rem 7, N} || N <- lists:seq(1, 23)]),
    Duplicates = ets:new('held dup', [duplicate_bag, private, compressed]),
    ets:insert(Duplicates, [{a, 1}, {a, 1}, {a, 1}]),
    Tree = ets:new(held_tree, [ordered_set, {keypos, 2}]),
    ets:insert(Tree, [{x, N} || N <- lists:seq(1, 230)]),
    Spread = ets:new(held_spread, [public, {write_concurrency, true}, {decentralized_counters, true}]),
    ets:insert(Spread, [{N, N} || N <- lists:seq(1, 777)]),
    Forest = ets:new(held_forest, [ordered_set, public, {write_concurrency, true}]),
    ets:insert(Forest, [{N, N} || N <- lists:seq(1, 555)]),
    [spawn(?MODULE, deep, [Depth, inner]) || Depth <- [2, 3, 4], _ <- lists:seq(1, 15)],
    [spawn(?MODULE, deep, [3, other]) || _ <- lists:seq(1, 5)],
    connect(),
    erlang:send_after(86400000, no_such_name, never),
    spawn(?MODULE, printer, [self()]),
    receive printing -> ok end,
    spawn(?MODULE, hoarder, [self()]),
    receive hoarding -> ok end,
    persistent_term:put(held_term, lists:seq(1, 2300)),
    Parent ! ready,
    hold(Set, 2300).

hold(Set, Size) ->
    receive
        {"grow", From, Count} ->
            fill(Set, Size + 1, Size + Count),
            From ! done,
            hold(Set, Size + Count);
        {"timers", From, Count} ->
            [erlang:send_after(86400000, self(), never) || _ <- lists:seq(1, Count)],
            From ! done,
            hold(Set, Size);
        {"swell", From, Count} ->
            whereis(culprit) =:= undefined andalso register(culprit, spawn(fun() -> swell([]) end)),
            culprit ! {swell, From, Count},
            hold(Set, Size);
        {"letters", From, Count} ->
            spawn(fun() -> letters(Count), From ! done end),
            hold(Set, Size);
        {"parcels", From, Count} ->
            spawn(fun() -> parcels(Count), From ! done end),
            hold(Set, Size);
        {"mailboxes", From, Count} ->
            [P ! N || P <- [spawn(?MODULE, other, []) || _ <- lists:seq(1, Count)], N <- lists:seq(1, 25)],
            From ! done,
            hold(Set, Size);
        {"atoms", From, Count} ->
            [list_to_atom("planted_" ++ integer_to_list(N)) || N <- lists:seq(1, Count)],
            From ! done,
            hold(Set, Size);
        {"sockets", From, Count} ->
            [open_port({spawn_driver, "udp_inet"}, [binary]) || _ <- lists:seq(1, Count)],
            From ! done,
            hold(Set, Size);
        {"processes", From, Count} ->
            [spawn(?MODULE, other, []) || _ <- lists:seq(1, Count)],
            From ! done,
            hold(Set, Size);
        {"many", From, Count} ->
            [ets:new(many, []) || _ <- lists:seq(1, Count)],
            From ! done,
            hold(Set, Size)
    end.

%% Words of a process's virtual heap, in bytes.
vheap(P) ->
    {_, Info} = process_info(P, garbage_collection_info),
    8 * lists:sum([proplists:get_value(Item, Info) || Item <- [bin_vheap_size, bin_old_vheap_size]]).

swell(Held) ->
    receive
        {swell, From, Count} ->
            More = [binary:copy(<<N>>, 1000000) || N <- lists:seq(1, Count)],
            From ! done,
            swell([More | Held])
    end.

letters(Count) ->
    [P ! N || P <- [spawn(?MODULE, other, []) || _ <- lists:seq(1, 40)], N <- lists:seq(1, 60)],
    register(addressee, spawn_opt(?MODULE, other, [], [{message_queue_data, off_heap}])),
    [addressee ! lists:seq(1, 100000) || _ <- lists:seq(1, Count)].

parcels(Count) ->
    register(recipient, spawn_opt(?MODULE, other, [], [{message_queue_data, off_heap}])),
    [recipient ! {parcel, binary:copy(<<N>>, 1000000)} || N <- lists:seq(1, Count)].

%% Holds 23 binaries of 100,000 bytes.
hoarder(Keeper) ->
    register(hoarder, self()),
    Held = [binary:copy(<<N>>, 100000) || N <- lists:seq(1, 23)],
    Keeper ! hoarding,
    receive never -> Held end.

fill(Set, First, Last) -> ets:insert(Set, [{N, <<N:800>>} || N <- lists:seq(First, Last)]).

%% A connection with 23,000 bytes one way, and a program that has echoed 230.
connect() ->
    {ok, Listening} = gen_tcp:listen(0, [{ip, {127, 0, 0, 1}}, {active, false}, binary]),
    {ok, Number} = inet:port(Listening),
    {ok, Out} = gen_tcp:connect({127, 0, 0, 1}, Number, [binary]),
    {ok, In} = gen_tcp:accept(Listening),
    ok = gen_tcp:send(Out, binary:copy(<<7>>, 23000)),
    {ok, _} = gen_tcp:recv(In, 23000),
    Echo = open_port({spawn, "cat"}, [binary]),
    true = port_command(Echo, binary:copy(<<7>>, 230)),
    echoed(Echo, 230).

echoed(_, 0) -> ok;
echoed(Echo, Left) -> receive {Echo, {data, Data}} -> echoed(Echo, Left - byte_size(Data)) end.

%% Writes to a program that reads nothing, until the port is busy and suspends it.
printer(Keeper) ->
    register(printer, self()),
    Port = open_port({spawn, "sh -c 'while kill -0 $PPID; do sleep 1; done'"}, [binary]),
    spawn(fun() -> suspended(Keeper, whereis(printer)) end),
    write(Port).

write(Port) ->
    port_command(Port, binary:copy(<<0>>, 1000000)),
    write(Port).

suspended(Keeper, Pid) ->
    case process_info(Pid, status) of
        {status, suspended} -> Keeper ! printing;
        _ -> receive after 1 -> suspended(Keeper, Pid) end
    end.

%% Waits below some frames of its own, which count as one, in one of two functions.
deep(0, Function) -> ?MODULE:Function();
deep(Depth, Function) -> [deep(Depth - 1, Function)].

inner() -> receive never -> ok end.
other() -> put('$process_label', {waits, "other"}), receive never -> ok end.

stack(P) ->
    {_, Frames} = process_info(P, current_stacktrace),
    case [frame(Frame) || Frame <- Frames] of
        [] -> "none";
        Texts -> lists:join(" ", Texts)
    end.

frame({M, F, A, Where}) ->
    Line = case Where of [{file, File}, {line, N} | _] -> [File, ":", integer_to_list(N)]; _ -> "" end,
    io_lib:format("~w:~w/~w@~s", [M, F, A, Line]).

%% What goes through the port of this conversation changes with it.
port(P) ->
    [{_, Name}, {_, Owner}, {_, Pid}, {_, Queue}, {_, In}, {_, Out}] =
        [erlang:port_info(P, Item) || Item <- [name, connected, os_pid, queue_size, input, output]],
    Bytes = case Name of "0/1" -> [0, 0, 0]; _ -> [Queue, In, Out] end,
    io_lib:format("~ts ~p ~w ~w ~w ~w ~w", [lists:flatten(string:replace(Name, " ", "_", all)), P, Owner, Pid | Bytes]).

tell(T) ->
    [Memory | Rest] =
        [ets:info(T, Item) || Item <- [memory, named_table, owner, type, protection, size, keypos, compressed]],
    Name = lists:flatten(string:replace(atom_to_list(ets:info(T, name)), " ", "_", all)),
    io_lib:format("~ts ~p ~w ~w ~w ~w ~w ~w ~w", [Name, Memory * erlang:system_info(wordsize) | Rest]).
