%% SPDX-License-Identifier: Apache-2.0
%% The chunk ScMk at the end of a marked file: how the original is made of it. A file is a list of pieces, each kept or
%% replaced, so the way back is written down while the way there is gone, and needs to know nothing about code.
-module(scope_mark_undo).
-export([edited/2, whole/2, original/1, is_marked/1]).
-export_type([piece/0]).

-type piece() :: {keep, binary()} | {put, Old :: binary(), New :: binary()}.

-define(ID, "ScMk").
-define(EDITS, 1).
-define(WHOLE, 2).

%% The marked file of the pieces behind its 12-byte header, with the chunk at its end.
-spec edited(binary(), [piece()]) -> binary().
edited(Original, Pieces) ->
    Body = iolist_to_binary([new(P) || P <- Pieces]),
    Script = iolist_to_binary([step(P) || P <- merged(Pieces)]),
    file(Body, <<?EDITS, (erlang:md5(Original))/binary, Script/binary>>).

%% A marked file that carries its original as it was: for compressed files, which nobody can compress alike again.
-spec whole(binary(), binary()) -> binary().
whole(Original, <<"FOR1", _:32, "BEAM", _/binary>> = Marked) ->
    {ok, Body, _} = split(Marked),
    file(Body, <<?WHOLE, (erlang:md5(Original))/binary, Original/binary>>).

file(Body, Undo) ->
    Size = byte_size(Undo),
    Chunk = <<?ID, Size:32, Undo/binary, (scope_mark_iff:padding(Size))/binary>>,
    <<(scope_mark_iff:header(byte_size(Body) + byte_size(Chunk)))/binary, Body/binary, Chunk/binary>>.

new({keep, Bin}) -> Bin;
new({put, _, New}) -> New.

merged([{keep, A}, {keep, B} | T]) -> merged([{keep, [A, B]} | T]);
merged([{put, A, B}, {put, C, D} | T]) -> merged([{put, [A, C], [B, D]} | T]);
merged([H | T]) -> [H | merged(T)];
merged([]) -> [].

step({keep, Bin}) -> [0, varint(iolist_size(Bin))];
step({put, Old, New}) -> [1, varint(iolist_size(New)), varint(iolist_size(Old)), Old].

varint(N) when N < 128 -> <<N>>;
varint(N) -> <<1:1, N:7, (varint(N bsr 7))/binary>>.

-spec is_marked(binary()) -> boolean().
is_marked(Bin) -> split(Bin) =/= none.

%% The original, if its digest proves it.
-spec original(binary()) -> {ok, binary()} | none.
original(Marked) ->
    case split(Marked) of
        none -> none;
        {ok, Body, <<Kind, Digest:16/binary, Rest/binary>>} ->
            Original = restored(Kind, Body, Rest),
            erlang:md5(Original) =:= Digest orelse throw(changed_after_marking),
            {ok, Original};
        {ok, _, _} -> throw(changed_after_marking)
    end.

restored(?WHOLE, _, Original) -> Original;
restored(?EDITS, Body, Script) ->
    Old = iolist_to_binary(steps(Script, Body)),
    <<(scope_mark_iff:header(byte_size(Old)))/binary, Old/binary>>;
restored(_, _, _) -> throw(newer_marking).

steps(<<>>, <<>>) -> [];
steps(<<0, Bin/binary>>, Body) ->
    {N, Script} = number(Bin, 0, 0),
    case Body of
        <<Keep:N/binary, Rest/binary>> -> [Keep | steps(Script, Rest)];
        _ -> throw(changed_after_marking)
    end;
steps(<<1, Bin/binary>>, Body) ->
    {N, Bin1} = number(Bin, 0, 0),
    {M, Bin2} = number(Bin1, 0, 0),
    case {Bin2, Body} of
        {<<Old:M/binary, Script/binary>>, <<_:N/binary, Rest/binary>>} -> [Old | steps(Script, Rest)];
        _ -> throw(changed_after_marking)
    end;
steps(_, _) -> throw(changed_after_marking).

number(<<More:1, N:7, Rest/binary>>, Shift, Acc) when Shift < 63 ->
    Sum = Acc bor (N bsl Shift),
    case More of
        0 -> {Sum, Rest};
        1 -> number(Rest, Shift + 7, Sum)
    end;
number(_, _, _) -> throw(changed_after_marking).

%% What lies between the header and the chunk, and the chunk's contents. It is the last chunk or it does not count.
split(Bin) ->
    Chunks = scope_mark_iff:read(Bin),
    case scope_mark_iff:find(<<?ID>>, Chunks) of
        none -> none;
        Undo ->
            {Id, _, Padding} = lists:last(Chunks),
            Id =:= <<?ID>> orelse throw(changed_after_marking),
            Size = byte_size(Bin) - 12 - 8 - byte_size(Undo) - byte_size(Padding),
            {ok, binary:part(Bin, 12, Size), Undo}
    end.
