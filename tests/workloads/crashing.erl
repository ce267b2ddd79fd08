%% SPDX-License-Identifier: Apache-2.0
%% Processes that crash in each way there is. Lines that a trace must name end in a comment.
-module(crashing).
-export([crash/1]).
-export([badly/1, parse/1, leave/1, toss/1, waits/0, raise/1]).

%% Begin a process that crashes as Kind says, and return it.
crash("error") -> spawn(?MODULE, badly, [one]);
crash("fun") -> spawn(fun() -> badly(one) end);
crash("bif") -> spawn(?MODULE, parse, ["none"]);
crash("struct") -> spawn(?MODULE, raise, [#{'__struct__' => 'Elixir.Planted.Error', message => <<>>}]);
crash("exit") -> spawn(?MODULE, leave, [{out_of_stock, 7}]);
crash("throw") -> spawn(?MODULE, toss, [ball]);
crash("killed") -> killed(spawn(?MODULE, waits, []));
crash("named") -> spawn(fun() -> register(crashing_name, self()), badly(one) end);
crash("named_killed") ->
    Self = self(),
    Named = spawn(fun() -> register(crashing_name, self()), Self ! named, waits() end),
    receive named -> killed(Named) end;
crash("proc_lib") ->
    ok = logger:set_module_level(proc_lib, none),
    proc_lib:spawn(?MODULE, leave, [{out_of_stock, 7}]).

killed(Victim) ->
    exit(Victim, kill),
    Victim.

badly(Term) ->
    Sum = Term + 1, % error
    {sum, Sum}.

parse(Text) ->
    Number = list_to_integer(Text), % bif
    {number, Number}.

raise(Struct) ->
    error(Struct). % struct

leave(Reason) -> exit(Reason).

toss(Ball) ->
    throw(Ball). % throw

waits() -> receive after infinity -> ok end.
